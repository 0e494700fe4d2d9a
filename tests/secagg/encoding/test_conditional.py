"""Conditional rounding for the client unit: the sensitivity always holds, the bias is small."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg import EncodingPlan, decode, encode, plan_clients, plan_plain, plan_records, wrap
from carefl_secure.secagg.encoding.hadamard import rotate_back
from carefl_secure.secagg.encoding.planner import MAX_OVERFLOW, REDRAW_PROBABILITY, rounded_sensitivity
from carefl_secure.secagg.encoding.quantize import MAX_REDRAWS, NORM_SLACK

Vector = npt.NDArray[np.float64]
ROTATION = b"r" * 32
LOOSE = math.exp(-0.5)  # the beta of Kairouz, Liu and Steinke: redraws can be seen


def stream(number: int) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"))


def coarse(dimension: int, clients: int = 3) -> EncodingPlan:
    """A plan whose rounding is so coarse and whose bound so tight that redraws happen."""
    plan = plan_clients(dimension, 1.0, 1.0, clients, clients, inflation=1.3)
    padded = plan.padded
    scale = math.sqrt(padded)  # every coordinate of a flat vector has magnitude near 1
    l1, l2 = rounded_sensitivity(scale * (1 + NORM_SLACK), padded, LOOSE)
    return dataclasses.replace(plan, scale=scale, l1_sensitivity=l1, l2_sensitivity=l2)


def halves(plan: EncodingPlan, seed: int = 0) -> Vector:
    """A full-length vector that lies half-way between integers once rotated and scaled."""
    random = np.random.default_rng(seed)
    units = np.sign(random.normal(size=plan.padded)) * 0.5
    few = round((plan.scale**2 - plan.padded / 4) / 2)
    units[:few] *= 3  # |0.5|^2 -> |1.5|^2 adds 2 each: the norm is then the scale
    return rotate_back(units / plan.scale, plan.padded, ROTATION)


@pytest.mark.parametrize("dimension", [16, 256, 1024])
def test_the_bound_holds_always_and_not_by_itself(dimension: int) -> None:
    """The worst vector for rounding: free draws break the bound, conditional ones never do."""
    plan = coarse(dimension)
    free = dataclasses.replace(plan, conditional=False)
    vector = halves(plan)
    assert np.linalg.norm(vector) <= 1 + 1e-9
    broken = 0
    for trial in range(400):
        kept = encode(vector, plan, ROTATION, stream(trial))
        drawn = encode(vector, free, ROTATION, stream(trial))
        assert np.linalg.norm(kept) <= plan.l2_sensitivity
        assert np.abs(kept).sum() <= plan.l1_sensitivity
        too_long = bool(np.linalg.norm(drawn) > plan.l2_sensitivity)
        assert too_long != np.array_equal(kept, drawn)  # an acceptable first draw is kept
        broken += too_long
    assert broken > 0
    # P[accept] >= 1 - beta; five standard deviations for 400 draws
    assert broken / 400 < LOOSE + 5 * math.sqrt(LOOSE * (1 - LOOSE) / 400)


@pytest.mark.parametrize("dimension", [5, 300, 5000])
def test_planned_encodings_stay_within_the_sensitivity(dimension: int) -> None:
    plan = plan_clients(dimension, 0.3, 1.0, 10, 6)
    random = np.random.default_rng(dimension)
    for trial in range(100):
        vector = random.normal(size=dimension)
        if trial % 3 == 0:
            vector = np.zeros(dimension)
            vector[trial % dimension] = 1.0
        vector *= plan.clipping_norm / np.linalg.norm(vector)
        made = encode(vector, plan, ROTATION, stream(trial))
        assert np.linalg.norm(made) <= plan.l2_sensitivity
        assert np.abs(made).sum() <= plan.l1_sensitivity


def test_unbiased_to_within_the_stated_bias() -> None:
    """Where redraws are common the bias is real, and no larger than stated."""
    plan, count = coarse(16), 8_000
    vector = halves(plan)
    free = dataclasses.replace(plan, conditional=False)
    redrawn, total, free_total = 0, np.zeros(16), np.zeros(16)
    shared = KeyStream(b"u" * 32)
    for trial in range(count):
        made = encode(vector, plan, ROTATION, stream(trial))
        drawn = encode(vector, free, ROTATION, shared)
        redrawn += bool(np.linalg.norm(drawn) > plan.l2_sensitivity)
        total += decode(wrap(made, plan.bits), plan, ROTATION)
        free_total += decode(wrap(drawn, plan.bits), plan, ROTATION)
    noise = 6 * 0.5 * math.sqrt(16 / count)  # Euclidean, units
    beta = redrawn / count
    assert 0.01 < beta < LOOSE
    bias = float(np.linalg.norm(total / count - vector)) * plan.scale
    assert bias <= math.sqrt(16) * beta / (1 - beta) + noise
    inwards = float((vector - total / count) @ vector) * plan.scale
    assert inwards > 6 * 0.5 / math.sqrt(count)  # conditioning does bias, free rounding does not
    assert float(np.linalg.norm(free_total / count - vector)) * plan.scale < noise


def test_the_bias_of_a_plan_is_negligible() -> None:
    plan = plan_clients(1000, 1.0, 1.0, 10, 6)
    stated = math.sqrt(plan.padded) * REDRAW_PROBABILITY / (1 - REDRAW_PROBABILITY)
    noise = math.sqrt(plan.total_variance() * plan.padded)
    assert plan.clients * stated < 1e-6 * noise


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(3, 8), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_the_sum_decodes_to_within_the_rounding_bound(dimension: int, clients: int, norm: float, seed: int) -> None:
    """All clients at full length and aligned, which is the worst case for overflow.

    A wrap has a planned probability; here its bound is far below one in a billion.
    """
    plan = plan_clients(dimension, norm, 1.0, clients, clients)
    plan = dataclasses.replace(plan, bits=32)
    random = np.random.default_rng(seed)
    vector = random.normal(size=dimension)
    vector *= norm / np.linalg.norm(vector)
    vectors = [vector * random.choice([-1.0, 1.0, 0.5]) for _ in range(clients)]
    words = [wrap(encode(v, plan, ROTATION, stream(seed + i)), plan.bits) for i, v in enumerate(vectors)]
    total = np.sum(words, axis=0, dtype=np.uint32)
    error = decode(total, plan, ROTATION) - np.sum(vectors, axis=0)
    assert np.linalg.norm(error) <= plan.rounding_bound * (1 + 1e-9)


def test_a_plan_for_clients() -> None:
    plan = plan_clients(100_000, 2.0, 1.0, 20, 10, inflation=1.02)
    noise = math.sqrt(plan.total_variance() + plan.clients / 4)
    assert noise / (plan.scale * plan.clipping_norm) == pytest.approx(1.02, rel=1e-6)
    scaled = plan.scale * plan.clipping_norm * (1 + NORM_SLACK)
    l1, l2 = rounded_sensitivity(scaled, plan.padded, REDRAW_PROBABILITY)
    assert (plan.l1_sensitivity, plan.l2_sensitivity) == (l1, l2)
    assert l1 == min(l2**2, math.sqrt(plan.padded) * l2)
    assert plan.dither_failure == 0
    assert plan.conditional
    assert plan.rotated
    assert plan.vector_bound == plan.clipping_norm
    assert plan.overflow_probability <= MAX_OVERFLOW
    assert plan.share_variance() * 10 == pytest.approx(plan.total_variance())
    assert l2 < plan_records(100_000, 2.0, 1.0, 20, 20, 10, 1.02).l2_sensitivity


def test_no_overflow_at_the_planned_word() -> None:
    """All clients aligned on the worst direction for a rotation: a spike after rotating."""
    for clients in (3, 100):
        plan = plan_clients(4096, 1.0, 1.0, clients, clients)
        vector = np.random.default_rng(clients).normal(size=4096)
        vector /= np.linalg.norm(vector)
        made = [encode(vector, plan, ROTATION, stream(i)) for i in range(clients)]
        exact = np.sum(made, axis=0)
        words = np.sum([wrap(m, plan.bits) for m in made], axis=0).astype(f"u{plan.bits // 8}")
        assert np.array_equal(words.view(f"i{plan.bits // 8}"), exact)


def test_a_wrong_plan_ends_in_a_clear_error() -> None:
    plan = dataclasses.replace(plan_clients(64, 1.0, 1.0, 3, 2), l2_sensitivity=1.0)
    dither = stream(1)
    with pytest.raises(ProtocolError, match=r"^conditional rounding: .* nothing was sent"):
        encode(np.full(64, 0.125), plan, ROTATION, dither)
    used = KeyStream((1).to_bytes(32, "big"))
    used.take(8 * 64 * MAX_REDRAWS)
    assert dither.take(16) == used.take(16)  # every try drew anew, and no more than the cap


def test_a_vector_past_the_norm_is_brought_back_to_it() -> None:
    plan = plan_clients(64, 1.0, 1.0, 3, 2)
    found = encode(np.full(64, 0.5), plan, ROTATION, stream(0))
    assert float(np.linalg.norm(found.astype(np.float64))) <= plan.l2_sensitivity
    np.testing.assert_array_equal(found, encode(np.full(64, plan.vector_bound / 8), plan, ROTATION, stream(0)))


def test_older_plans_keep_their_hash_and_conditional_ones_have_their_own() -> None:
    plan = plan_records(1000, 1.0, 1.0, 100, 10, 5)
    fields = dataclasses.asdict(plan)
    assert fields.pop("conditional") is False
    assert EncodingPlan(**fields).hash() == plan.hash()
    other = dataclasses.replace(plan, conditional=True)
    assert other.hash() != plan.hash()
    assert plan_plain(5, 1.0, 3).hash().hex() == "a6cf529be9127e5ddefc9ed0ff03607ae9c9083dfd34c40646288cd12b421be2"
