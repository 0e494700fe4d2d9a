"""Poisson sampling: independent, at the declared rate, and never above it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chi2

from carefl_secure.errors import ConfigError
from carefl_secure.noise.keystream import KeyStream
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.sampling import OVERFLOW, sample_bound


def _stream(number: int) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"))


def test_one_key_gives_one_sample_and_another_key_another() -> None:
    first = poisson_sample(1000, 0.3, _stream(1))
    assert np.array_equal(first, poisson_sample(1000, 0.3, _stream(1)))
    assert not np.array_equal(first, poisson_sample(1000, 0.3, _stream(2)))


@given(st.integers(0, 300), st.floats(1e-6, 1.0), st.integers(0, 2**32))
def test_indices_ascend_without_repetition(records: int, rate: float, key: int) -> None:
    sample = poisson_sample(records, rate, _stream(key))
    assert sample.dtype == np.int64
    assert np.all(np.diff(sample) > 0)
    assert sample.size == 0 or (sample[0] >= 0 and sample[-1] < records)


def test_a_larger_rate_takes_a_superset_of_the_same_draw() -> None:
    small = poisson_sample(5000, 0.1, _stream(3))
    large = poisson_sample(5000, 0.4, _stream(3))
    assert set(small) < set(large)


def test_rate_one_takes_everything() -> None:
    assert np.array_equal(poisson_sample(7, 1.0, _stream(1)), np.arange(7))


def test_a_rate_just_below_one_is_no_overflow() -> None:
    assert poisson_sample(50, np.nextafter(1.0, 0.0), _stream(1)).size == 50


def test_an_empty_sample_is_an_answer() -> None:
    assert poisson_sample(0, 0.5, _stream(1)).shape == (0,)
    assert poisson_sample(10, 1e-12, _stream(1)).shape == (0,)


def test_the_threshold_never_rounds_the_rate_up() -> None:
    class Words:
        def words(self, count: int, dtype: object) -> np.ndarray:
            return np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)[:count]

    drawn = poisson_sample(4, 0.5, Words())  # type: ignore[arg-type]
    assert drawn.tolist() == [0, 1]


def test_sizes_and_counts_follow_the_binomial() -> None:
    records, rate, steps = 200, 0.05, 2000
    stream = _stream(11)
    taken = np.zeros((steps, records), dtype=bool)
    for step in range(steps):
        taken[step, poisson_sample(records, rate, stream)] = True
    # the rate
    assert binomtest(int(taken.sum()), steps * records, rate).pvalue > 1e-4
    # independence of records within a step: shuffled or fixed-size batches have no spread of sizes
    sizes = taken.sum(1)
    spread = float(((sizes - records * rate) ** 2).sum() / (records * rate * (1 - rate)))
    assert 1e-4 < chi2.cdf(spread, steps) < 1 - 1e-4
    # independence of steps: an epoch-wise shuffle takes every record equally often
    counts = taken.sum(0)
    spread = float(((counts - steps * rate) ** 2).sum() / (steps * rate * (1 - rate)))
    assert 1e-4 < chi2.cdf(spread, records) < 1 - 1e-4


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_rates_outside_the_range_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        poisson_sample(10, rate, _stream(1))


def test_a_negative_number_of_records_is_refused() -> None:
    with pytest.raises(ConfigError, match="records"):
        poisson_sample(-1, 0.5, _stream(1))


@pytest.mark.parametrize(("records", "rate"), [(1, 0.5), (30, 0.5), (250, 0.05), (1000, 1e-3), (20_000, 0.01)])
@pytest.mark.parametrize("each", [1, 3])
def test_a_bound_is_the_smallest_of_its_tail(records: int, rate: float, each: int) -> None:
    """By summing the probabilities themselves: others fill the bound with 2**-40 at most."""
    bound = sample_bound(records, rate, each)
    step = 1 << max(0, records.bit_length() - 4)
    most = -(-records // step) * step
    chances = binom.pmf(np.arange(most), most - 1, rate)

    def tail(least: int) -> float:
        return math.fsum(chances[least:].tolist())

    if bound < most:
        assert tail(bound - each + 1) <= OVERFLOW * (1 + 1e-9)
        assert tail(bound - each) > OVERFLOW
    assert sample_bound(records, 1.0) == most >= records


def test_a_bound_tells_little_of_the_number_of_records() -> None:
    assert sample_bound(0, 0.5) == 0
    bounds = [sample_bound(n, 0.05) for n in range(1000, 2000)]
    assert bounds == sorted(bounds) and len(set(bounds)) <= 10
