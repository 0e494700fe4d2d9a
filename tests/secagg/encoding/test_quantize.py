"""Encoding: sums decode to within rounding, and one record changes no more than is stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from carefl_secure.errors import ConfigError, NonFiniteError, ProtocolError
from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.secagg import EncodingPlan, decode, encode, plan_plain, plan_records, wrap
from carefl_secure.secagg.encoding.hadamard import rotate, rotate_back
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vector = npt.NDArray[np.float64]
ROTATION = b"r" * 32


def stream(number: int) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"))


def sums(plan: EncodingPlan, records: int, seed: int = 0) -> list[Vector]:
    """One sum of ``records`` full-length records per client."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(plan.clients):
        rows = random.normal(size=(records, plan.dimension)) + 0.3
        rows *= plan.clipping_norm / np.linalg.norm(rows, axis=1, keepdims=True)
        made.append(rows.sum(axis=0))
    return made


@pytest.mark.parametrize("dimension", [5, 1000, 1024])
def test_sum_of_encodings_decodes_to_the_sum(dimension: int) -> None:
    plan = plan_records(dimension, 0.5, 1.0, 20, 4, 2)
    vectors = sums(plan, 3)
    total = sum(wrap(encode(v, plan, ROTATION, stream(i)), plan.bits) for i, v in enumerate(vectors))
    assert isinstance(total, np.ndarray)
    error = decode(total, plan, ROTATION) - np.sum(vectors, axis=0)
    assert 0 < np.linalg.norm(error) <= plan.rounding_bound
    if dimension >= 1000:
        assert error.std() <= 1.1 * np.sqrt(plan.clients) / (2 * plan.scale)


def test_plain_sum() -> None:
    plan = plan_plain(1000, 2.0, 5)
    random = np.random.default_rng(0)
    vectors = [random.uniform(-2, 2, 1000) for _ in range(5)]
    vectors[0][:3] = vectors[1][:3] = vectors[2][:3] = vectors[3][:3] = vectors[4][:3] = 2.0
    vectors[0][3] = -2.0
    total = sum(wrap(encode(v, plan), plan.bits) for v in vectors)
    assert isinstance(total, np.ndarray)
    error = np.abs(decode(total, plan) - np.sum(vectors, axis=0)).max()
    assert error <= plan.rounding_bound < 1e-7


@pytest.mark.parametrize("noise_multiplier", [1.0, 60.0])
def test_through_a_masked_round_with_dropouts(rehearse: Rehearse, noise_multiplier: float) -> None:
    """16 and 32 bits, noise added, one client lost before and one after its upload."""
    plan = plan_records(3000, 1.0, noise_multiplier, 50, 9, 5)
    assert plan.bits == (16 if noise_multiplier == 1.0 else 32)
    vectors = sums(plan, 4)
    sampler = SkellamSampler(plan.share_variance())
    noises = [sampler.sample(stream(100 + i), plan.padded) for i in range(9)]
    words = {i: wrap(encode(v, plan, ROTATION, stream(i)) + noises[i], plan.bits) for i, v in enumerate(vectors)}
    rehearsal = rehearse(9, dimension=plan.padded, bits=plan.bits, plan_hash=plan.hash())
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(words, gone=[4])
    rehearsal.sign()
    rehearsal.unmask(gone=[7])
    opened = decode(rehearsal.finish(), plan, ROTATION)
    kept = [i for i in range(9) if i != 4]
    noise = sum(noises[i] for i in kept)
    quiet = decode(wrap(np.asarray(noise), plan.bits), plan, ROTATION)
    error = opened - np.sum([vectors[i] for i in kept], axis=0)
    assert np.linalg.norm(error - quiet) <= plan.rounding_bound
    spread = error.var() * plan.scale**2 / (plan.share_variance() * len(kept) + len(kept) / 4)
    assert abs(spread - 1) < 6 * np.sqrt(2 / 3000)
    assert error.var() * plan.scale**2 > plan.total_variance()


def test_rounding_is_unbiased() -> None:
    plan = plan_records(64, 1.0, 1.0, 10, 3, 2)
    vector = sums(plan, 2)[0]
    rounds = [decode(wrap(encode(vector, plan, ROTATION, stream(i)), plan.bits), plan, ROTATION) for i in range(2000)]
    error = np.mean(rounds, axis=0) - vector
    assert np.abs(error).max() < 6 * 0.5 / plan.scale / np.sqrt(2000)


def change(plan: EncodingPlan, base: Vector, record: Vector, number: int) -> npt.NDArray[np.int64]:
    """What adding one record changes in the integers, for one draw of the dither."""
    return encode(base + record, plan, ROTATION, stream(number)) - encode(base, plan, ROTATION, stream(number))


@pytest.mark.parametrize("dimension", [16, 512, 4096])
@pytest.mark.parametrize("kind", ["random", "spike", "halves"])
def test_one_record_changes_no_more_than_stated(dimension: int, kind: str) -> None:
    """Try to break the sensitivity: full-length records on sums of all sizes."""
    plan = plan_records(dimension, 1.0, 1.0, 100, 5, 3, inflation=1.2)
    random = np.random.default_rng(dimension)
    record = random.normal(size=dimension)
    if kind == "spike":
        record = np.zeros(dimension)
        record[3] = 1.0
    if kind == "halves":  # rotated and scaled it lies half-way between integers
        units = np.sign(random.normal(size=dimension)) * 0.5
        record = rotate_back(units, dimension, ROTATION)
    record *= plan.clipping_norm / np.linalg.norm(record)
    largest1 = largest2 = 0.0
    for trial in range(300):
        base = random.normal(size=dimension)
        base *= random.choice([0.0, 1.0, 10.0, 100.0]) / np.linalg.norm(base)
        moved = change(plan, base, record, trial).astype(float)
        largest1 = max(largest1, float(np.abs(moved).sum()))
        largest2 = max(largest2, float(np.linalg.norm(moved)))
    scaled = plan.scale * plan.clipping_norm
    assert largest2 <= plan.l2_sensitivity
    assert largest1 <= plan.l1_sensitivity
    assert largest2 > scaled  # rounding does enlarge: the plain norm would not be a bound


def test_the_change_has_the_same_law_whatever_the_sum_holds() -> None:
    """The heart of the argument: mean and spread of the change do not depend on the base."""
    plan = plan_records(256, 1.0, 1.0, 100, 5, 3, inflation=1.2)
    random = np.random.default_rng(0)
    record = random.normal(size=256)
    record *= 1 / np.linalg.norm(record)
    bases = [np.zeros(256), random.normal(size=256), random.normal(size=256) * 5]
    laws = []
    for place, base in enumerate(bases):
        sizes = [float(np.square(change(plan, base, record, 10_000 * place + i)).sum()) for i in range(1500)]
        laws.append((np.mean(sizes), np.std(sizes) / np.sqrt(1500)))
    for mean, error in laws[1:]:
        assert abs(mean - laws[0][0]) < 5 * (error + laws[0][1])
    turned = rotate(record, plan.padded, ROTATION) * plan.scale
    share = turned - np.floor(turned)
    expected = np.square(turned).sum() + (share * (1 - share)).sum()
    assert abs(laws[0][0] - expected) < 5 * laws[0][1]


def test_rounding_to_nearest_would_break_the_sensitivity() -> None:
    """Why plain plans claim nothing: there a tiny record can move every coordinate by one."""
    plan = plan_plain(1024, 1.0, 3)
    base = np.full(1024, 0.49999 / plan.scale)
    tiny = np.full(1024, 0.0001 / plan.scale)
    moved = encode(base + tiny, plan) - encode(base, plan)
    assert np.linalg.norm(moved) > 1000 * np.linalg.norm(tiny * plan.scale)
    assert plan.l2_sensitivity == plan.l1_sensitivity == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused(bad: float) -> None:
    vector = np.zeros(8)
    vector[3] = bad
    for plan in (plan_records(8, 1.0, 1.0, 10, 3, 2), plan_plain(8, 1.0, 3)):
        with pytest.raises(NonFiniteError, match="nothing was sent"):
            encode(vector, plan, ROTATION, stream(0))


def test_too_large_is_projected_under_noise_and_refused_without() -> None:
    plan = plan_records(8, 1.0, 1.0, 10, 3, 2)
    vector = np.zeros(8)
    vector[0] = plan.vector_bound
    kept = encode(vector, plan, ROTATION, stream(0))
    np.testing.assert_array_equal(encode(vector * 1.0001, plan, ROTATION, stream(0)), kept)
    np.testing.assert_array_equal(encode(vector * 1e9, plan, ROTATION, stream(0)), kept)
    plain = plan_plain(8, 1.0, 3)
    encode(np.ones(8), plain)
    with pytest.raises(ProtocolError, match=r"^vector bound"):
        encode(np.full(8, -1.001), plain)


@pytest.mark.parametrize("vector", [np.zeros(7), np.zeros((8, 1)), np.zeros(8, np.float32)])
def test_wrong_shape_is_refused(vector: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^vector shape"):
        encode(vector, plan_plain(8, 1.0, 3))


def test_wrong_sum_is_refused() -> None:
    plan = plan_plain(8, 1.0, 3)
    for total in (np.zeros(9, np.uint32), np.zeros(8, np.uint16), np.zeros(8, np.int64)):
        with pytest.raises(ProtocolError, match=r"^sum shape"):
            decode(total, plan)


def test_missing_key_or_dither_is_refused() -> None:
    plan = plan_records(8, 1.0, 1.0, 10, 3, 2)
    with pytest.raises(ConfigError, match="rotation key and a dither"):
        encode(np.zeros(8), plan, ROTATION)
    with pytest.raises(ConfigError, match="rotation key and a dither"):
        encode(np.zeros(8), plan, None, stream(0))
    with pytest.raises(ConfigError, match="rotation key"):
        decode(np.zeros(8, np.uint16), plan)


@pytest.mark.parametrize("bits", [16, 32])
def test_wrap_is_reduction(bits: int) -> None:
    values = np.array([0, 1, -1, 2**15, -(2**15), 2**31, -(2**40) + 5, 2**62])
    assert wrap(values, bits).tolist() == [v % 2**bits for v in values.tolist()]
    with pytest.raises(ConfigError, match="16 or 32"):
        wrap(values, 8)
