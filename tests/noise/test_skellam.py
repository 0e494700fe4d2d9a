"""Skellam noise: the table against Bessel functions, the samples against the law."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from carefl_secure.errors import PrivacyError
from carefl_secure.noise import KeyStream, SkellamSampler, skellam

KNOWN = [11, 8, 2, 4, 0, -4, -9, 16]


def exact_cumulative(variance: float, reach: int) -> list[int]:
    """floor(2**127 P(|X| <= m)) by mpmath's Bessel functions."""
    with mpmath.workprec(300):
        v = mpmath.mpf(variance)
        mass = [mpmath.exp(-v) * mpmath.besseli(k, v) for k in range(reach + 1)]
        sums = [mass[0]]
        for value in mass[1:]:
            sums.append(sums[-1] + 2 * value)
        return [int(mpmath.floor(s * 2**127)) for s in sums]


@pytest.mark.parametrize("variance", [0.001, 0.7, 4.0, 1234.5])
def test_table_is_exact_to_the_last_bit_or_two(variance: float) -> None:
    reach = int(8 * variance**0.5) + 12
    table = skellam._cumulative(variance)
    for ours, exact in zip(table, exact_cumulative(variance, reach), strict=False):
        assert abs(ours - exact) <= 1


@pytest.mark.parametrize("variance", [4.0, 1e4, 1e8])
def test_table_covers_the_tails(variance: float) -> None:
    table = skellam._cumulative(variance)
    assert table == sorted(table)
    assert 2**127 - table[-1] <= 2
    assert len(table) < 2**18


@pytest.mark.parametrize("variance", [0.05, 2.0, 30.0, 2500.0])
def test_chi_square(variance: float) -> None:
    count = 1_000_000
    drawn = SkellamSampler(variance).sample(KeyStream(b"s" * 32), count)
    check_law(drawn, variance)


def check_law(drawn: npt.NDArray[np.int64], variance: float) -> None:
    law = stats.skellam(variance / 2, variance / 2)
    reach = int(law.ppf(1 - 20 / drawn.size))
    values = np.arange(-reach, reach + 1)
    expected = law.pmf(values) * drawn.size
    expected[0] = law.cdf(-reach) * drawn.size
    expected[-1] = law.sf(reach - 1) * drawn.size
    observed = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=values.size)
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("variance", [0.5, 100.0, 1e6, 1e8, 1e9])
def test_moments(variance: float) -> None:
    count = 400_000
    drawn = SkellamSampler(variance).sample(KeyStream(b"m" * 32), count).astype(float)
    kurtosis = 3 + 1 / variance
    assert abs(drawn.mean()) < 5 * np.sqrt(variance / count)
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt((kurtosis - 1) / count)


def test_tails() -> None:
    drawn = np.abs(SkellamSampler(4.0).sample(KeyStream(b"t" * 32), 2_000_000))
    law = stats.skellam(2, 2)
    for reach in (6, 8, 9):
        expected = 2 * law.sf(reach) * drawn.size
        assert abs(np.count_nonzero(drawn > reach) - expected) < 5 * np.sqrt(expected)


def test_signs_are_fair_and_independent_of_size() -> None:
    drawn = SkellamSampler(9.0).sample(KeyStream(b"f" * 32), 500_000)
    for magnitude in range(1, 8):
        chosen = drawn[np.abs(drawn) == magnitude]
        excess = np.sign(chosen).sum()
        assert abs(excess) < 5 * np.sqrt(chosen.size)


def test_large_variance_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skellam, "_LARGEST_PART", 25.0)
    sampler = SkellamSampler(60.0)
    assert sampler.parts == 3
    check_law(sampler.sample(KeyStream(b"p" * 32), 500_000), 60.0)


def test_sums_of_shares_have_the_law_of_the_sum() -> None:
    sampler = SkellamSampler(5.0)
    total = sum(sampler.sample(KeyStream(bytes([i]) * 32), 300_000) for i in range(4))
    assert isinstance(total, np.ndarray)
    check_law(total, 20.0)


def test_known_answer() -> None:
    drawn = SkellamSampler(100.0).sample(KeyStream(bytes(range(32))), 8)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == KNOWN


def by_definition(variance: float, key: bytes, count: int) -> list[int]:
    table = skellam._cumulative(variance)
    samples = []
    for word in KeyStream(key).words(count, np.uint64).tolist():
        magnitude = sum(entry >> 64 <= word >> 1 for entry in table)
        samples.append(-magnitude if word & 1 else magnitude)
    return samples


def test_guide_agrees_with_the_definition() -> None:
    key = b"d" * 32
    for variance in (0.3, 77.0, 90_000.0):
        drawn = SkellamSampler(variance).sample(KeyStream(key), 300)
        assert drawn.tolist() == by_definition(variance, key, 300)


class Second(KeyStream):
    """A stream whose second words are dictated."""

    def __init__(self, word: int) -> None:
        super().__init__(bytes(32))
        self.word = word

    def words(self, count: int, dtype: Any) -> npt.NDArray[Any]:
        return np.full(count, self.word, np.uint64)


def test_ties_are_decided_by_the_next_word() -> None:
    table = skellam._table(4.0)
    entry = 3
    word = table.high[entry : entry + 1]
    low = int(table.low[entry])
    assert 0 < low < 2**64 - 1
    assert table.magnitudes(word, Second(low - 1)).tolist() == [entry]
    assert table.magnitudes(word, Second(low)).tolist() == [entry + 1]


def test_ties_among_many_entries() -> None:
    table = skellam._table(4.0)
    last = table.high[-1]
    tied = np.flatnonzero(table.high == last)
    assert tied.size > 1  # far in the tail the first words are all alike
    for place in tied[:-1]:
        found = table.magnitudes(table.high[-1:], Second(int(table.low[place])))
        exact = np.count_nonzero((table.high < last) | ((table.high == last) & (table.low <= table.low[place])))
        assert found.tolist() == [exact]


def test_the_key_alone_fixes_the_noise() -> None:
    sampler = SkellamSampler(50.0)
    one = sampler.sample(KeyStream(b"a" * 32), 200_000)
    assert np.array_equal(one, sampler.sample(KeyStream(b"a" * 32), 200_000))
    other = sampler.sample(KeyStream(b"b" * 32), 200_000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(one.size)


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-9, float("nan"), float("inf")])
def test_bad_variance_is_refused(variance: float) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        SkellamSampler(variance)
