"""Whole rounds: the sum is exact for as long as enough survive, and absent below that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import CohortError
from carefl_secure.noise import SystemKeySource, add_masks
from carefl_secure.secagg import PairwiseClient
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]


def total(vectors: dict[int, npt.NDArray[Any]], members: set[int]) -> npt.NDArray[Any]:
    summed = np.zeros_like(vectors[0])
    for index in members:
        summed = summed + vectors[index]
    return summed


def play(rehearsal: Rehearsal, vectors: dict[int, npt.NDArray[Any]], gone: dict[int, int]) -> npt.NDArray[Any]:
    """Play a round in which ``gone[index]`` is the first step a client does not answer."""
    at = [[index for index, step in gone.items() if step == k] for k in range(5)]
    rehearsal.advertise(at[0])
    rehearsal.share(at[1])
    rehearsal.mask(vectors, at[2])
    rehearsal.sign(at[3])
    rehearsal.unmask(at[4])
    return rehearsal.finish()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exact_or_nothing(rehearse: Rehearse, vectors: Vectors, data: st.DataObject) -> None:
    clients = data.draw(st.integers(3, 9))
    rehearsal = rehearse(
        clients,
        dimension=data.draw(st.sampled_from([1, 7, 64])),
        bits=data.draw(st.sampled_from([16, 32])),
        min_survivors=data.draw(st.integers(3, clients)),
    )
    dropping = data.draw(st.lists(st.integers(0, clients - 1), max_size=3, unique=True))
    gone = {index: data.draw(st.integers(0, 4)) for index in dropping}
    given_vectors = vectors(rehearsal, seed=data.draw(st.integers(0, 99)))
    needed, threshold = rehearsal.parameters.required_survivors, rehearsal.parameters.threshold
    left = [clients - sum(step <= k for step in gone.values()) for k in range(5)]
    enough = all(n >= needed for n in left[:3]) and all(n >= threshold for n in left[3:])
    if not enough:
        with pytest.raises(CohortError, match="min_survivors"):
            play(rehearsal, given_vectors, gone)
        return
    opened = play(rehearsal, given_vectors, gone)
    uploaded = {i for i in range(clients) if gone.get(i, 9) > 2}
    assert np.array_equal(opened, total(given_vectors, uploaded))
    assert opened.dtype == rehearsal.parameters.dtype


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("bits", [16, 32])
def test_dropout_at_every_step(rehearse: Rehearse, vectors: Vectors, step: int, bits: int) -> None:
    rehearsal = rehearse(9, bits=bits, dimension=1000)
    given_vectors = vectors(rehearsal)
    opened = play(rehearsal, given_vectors, {0: step, 5: step})
    members = set(range(9)) if step > 2 else set(range(9)) - {0, 5}
    assert np.array_equal(opened, total(given_vectors, members))


@pytest.mark.parametrize("step", range(5))
def test_everyone_gone_is_a_cohort_error(rehearse: Rehearse, vectors: Vectors, step: int) -> None:
    rehearsal = rehearse(4)
    with pytest.raises(CohortError, match="nothing was released"):
        play(rehearsal, vectors(rehearsal), dict.fromkeys(range(4), step))


def test_real_keys(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4, dimension=70_001)
    rehearsal.clients = {
        i: PairwiseClient(rehearsal.parameters, i, c._identity, SystemKeySource())
        for i, c in rehearsal.clients.items()
    }
    given_vectors = vectors(rehearsal)
    assert np.array_equal(rehearsal.run(given_vectors), total(given_vectors, {0, 1, 2, 3}))


def test_the_vector_is_not_changed(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(3)
    given_vectors = vectors(rehearsal)
    before = {i: v.copy() for i, v in given_vectors.items()}
    rehearsal.run(given_vectors)
    assert all(np.array_equal(before[i], v) for i, v in given_vectors.items())


def words_of(upload: bytes, bits: int) -> npt.NDArray[Any]:
    return np.frombuffer(upload[16:-64], np.uint16 if bits == 16 else np.uint32)


def looks_uniform(words: npt.NDArray[Any]) -> bool:
    """Chi-square over the bytes of each place, and over neighbouring low bytes jointly."""
    rows = words.view(np.uint8).reshape(words.size, -1)
    tests = [stats.chisquare(np.bincount(column, minlength=256)).pvalue for column in rows.T]
    pairs = rows[:-1, 0] // 16 * 16 + rows[1:, 0] // 16
    tests.append(stats.chisquare(np.bincount(pairs, minlength=256)).pvalue)
    return bool(min(tests) > 1e-5)


@pytest.mark.parametrize("bits", [16, 32])
def test_an_upload_looks_uniform(rehearse: Rehearse, bits: int) -> None:
    size = 1 << 17
    rehearsal = rehearse(4, bits=bits, dimension=size)
    ramp = (np.arange(size) % 100).astype(rehearsal.parameters.dtype)
    assert not looks_uniform(ramp)  # the test can see
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(dict.fromkeys(range(4), ramp))
    uploads = {i: words_of(m, bits) for i, m in rehearsal.uploads.items()}
    for words in uploads.values():
        assert looks_uniform(words)
        centred = words.astype(float) - words.mean()
        assert abs(np.corrcoef(centred, ramp)[0, 1]) < 6 / np.sqrt(size)
        bits_of_words = (words & 1).astype(float)
        assert abs(np.corrcoef(bits_of_words, ramp & 1)[0, 1]) < 6 / np.sqrt(size)
    for one in range(4):
        for other in range(one):
            assert looks_uniform(uploads[one] - uploads[other])
            assert looks_uniform(uploads[one] + uploads[other])
    everything = uploads[0] + uploads[1] + uploads[2] + uploads[3]
    assert looks_uniform(everything)  # the self masks are still on


def test_equal_vectors_give_unequal_uploads_in_two_rounds(rehearse: Rehearse) -> None:
    first, second = rehearse(3, round=1), rehearse(3, round=2)  # even with the same keys
    vector = np.zeros(16, np.uint32)
    for rehearsal in (first, second):
        rehearsal.run(dict.fromkeys(range(3), vector))
    for index in range(3):
        one, two = words_of(first.uploads[index], 32), words_of(second.uploads[index], 32)
        assert not (one == two).any()


def test_mask_keys_of_a_round_are_distinct_and_match(
    rehearse: Rehearse, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[bytes, int]] = []

    def spy(vector: Any, keys: list[bytes], signs: list[int]) -> None:
        used.extend(zip(keys, signs, strict=True))
        add_masks(vector, keys, signs)

    monkeypatch.setattr("carefl_secure.secagg.primitives.framing.add_masks", spy)
    rehearsal = rehearse(6)
    rehearsal.run(vectors(rehearsal))
    keys = [key for key, _ in used]
    counts = {key: keys.count(key) for key in keys}
    assert sorted(counts.values()) == [1] * 6 + [2] * 15
    for key, count in counts.items():
        assert sum(sign for k, sign in used if k == key) == (0 if count == 2 else 1)


def test_mask_keys_carry_256_bits(rehearse: Rehearse, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bit of the 32 bytes moves, and no 64-bit word comes twice: no folded or text seeds."""
    keys: set[bytes] = set()

    def spy(vector: Any, masks: list[bytes], signs: list[int]) -> None:
        keys.update(masks)
        add_masks(vector, masks, signs)

    monkeypatch.setattr("carefl_secure.secagg.primitives.framing.add_masks", spy)
    rehearsal = rehearse(20)
    rehearsal.run(vectors(rehearsal))
    assert len(keys) == 20 + 190
    words = np.frombuffer(b"".join(sorted(keys)), np.uint64)
    assert np.unique(words).size == 4 * len(keys)
    by_place = words.reshape(-1, 4)
    assert (np.bitwise_or.reduce(by_place) == np.uint64(2**64 - 1)).all()
    assert (np.bitwise_and.reduce(by_place) == 0).all()
    ones = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(words.size * 64)


def test_overhead_beside_the_vector(rehearse: Rehearse, vectors: Vectors) -> None:
    """What one client sends besides its words: 418 B and 136 B per peer; 13.9 kB for 100."""
    rehearsal = rehearse(9)
    rehearsal.run(vectors(rehearsal))
    sent = sum(len(kind[4]) for kind in (rehearsal.adverts, rehearsal.uploads, rehearsal.consents, rehearsal.answers))
    sent += sum(len(message) for message in rehearsal.shares[4].values())
    assert sent - 16 * 4 == 418 + 36 + 8 * 136
    assert 418 + 36 + 99 * 136 < 15_000
