"""Uniform numbers: range, grid, law."""

from __future__ import annotations

import numpy as np
from scipy import stats

from carefl_secure.noise import KeyStream, uniform


def test_range_grid_and_known_answer() -> None:
    key = bytes(range(32))
    drawn = uniform(KeyStream(key), 1000)
    words = KeyStream(key).words(1000, np.uint64)
    assert drawn.tolist() == [int(w >> np.uint64(11)) / 2**53 for w in words]
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_law() -> None:
    drawn = uniform(KeyStream(b"u" * 32), 200_000)
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    last_bits = (drawn * 2.0**53).astype(np.uint64) & np.uint64(255)
    assert stats.chisquare(np.bincount(last_bits.astype(int), minlength=256)).pvalue > 1e-4


def test_one_is_never_reached() -> None:
    class Ones(KeyStream):
        def words(self, count, dtype):  # type: ignore[no-untyped-def]
            return np.full(count, np.iinfo(np.uint64).max, np.uint64)

    assert uniform(Ones(bytes(32)), 3).max() < 1
