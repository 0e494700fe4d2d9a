"""Gaussian noise: law, independence, refusal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from carefl_secure.errors import PrivacyError
from carefl_secure.noise import KeyStream, gaussian


def test_law() -> None:
    drawn = gaussian(KeyStream(b"g" * 32), 300_001, 2.5)
    assert drawn.shape == (300_001,)
    assert stats.kstest(drawn / 2.5, "norm").pvalue > 1e-4
    assert abs(drawn.std() / 2.5 - 1) < 6 / np.sqrt(2 * drawn.size)
    assert abs(drawn.mean()) < 6 * 2.5 / np.sqrt(drawn.size)
    assert abs(stats.kurtosis(drawn)) < 6 * np.sqrt(24 / drawn.size)


def test_tails() -> None:
    drawn = np.abs(gaussian(KeyStream(b"t" * 32), 1_000_000, 1.0))
    for reach in (3.0, 4.0):
        expected = 2 * stats.norm.sf(reach) * drawn.size
        assert abs(np.count_nonzero(drawn > reach) - expected) < 5 * np.sqrt(expected)


def test_coordinates_are_uncorrelated() -> None:
    drawn = gaussian(KeyStream(b"c" * 32), 200_000, 1.0)
    half = drawn.size // 2
    for other in (np.roll(drawn, 1), np.roll(drawn, half), np.roll(drawn, half // 2)):
        assert abs(np.mean(drawn * other)) < 6 / np.sqrt(drawn.size)
        assert abs(np.mean((drawn**2 - 1) * (other**2 - 1))) < 15 / np.sqrt(drawn.size)


def test_the_key_fixes_the_noise() -> None:
    one = gaussian(KeyStream(b"a" * 32), 10, 1.0)
    assert np.array_equal(one, gaussian(KeyStream(b"a" * 32), 10, 1.0))
    assert not np.isclose(one, gaussian(KeyStream(b"b" * 32), 10, 1.0)).any()
    assert gaussian(KeyStream(b"a" * 32), 0, 1.0).shape == (0,)


@pytest.mark.parametrize("stdev", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_stdev_is_refused(stdev: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        gaussian(KeyStream(bytes(32)), 3, stdev)
