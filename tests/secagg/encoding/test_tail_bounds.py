"""The bounds that plans rest on: by hand, against the exact law, and against samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.secagg.encoding.planner import batch_bound, overflow_bound, rounded_sensitivity


def test_sensitivity_by_hand() -> None:
    l1, l2 = rounded_sensitivity(3707.0, 1 << 20)
    tail = math.sqrt(2 * math.log(1e12))
    assert l2 == pytest.approx(math.sqrt(3707**2 + 2**18 + tail * (3707 + 512)), rel=1e-12)
    assert l1 == pytest.approx(l2 * 1024)
    assert l2 / 3707 == pytest.approx(1.0107, abs=3e-4)
    l1, l2 = rounded_sensitivity(0.5, 4)
    assert l2 == 2.5  # the bound that always holds is the smaller one here
    assert l1 == 5.0
    l1, l2 = rounded_sensitivity(1.0, 1 << 20)
    assert l1 == l2**2 or l1 == 1024 * l2


@pytest.mark.parametrize("mean", [0.5, 10.0, 100.0, 5000.0])
def test_batch_bound(mean: float) -> None:
    bound = batch_bound(mean)
    assert stats.poisson.sf(math.floor(bound), mean) <= 2.0**-40
    assert bound < mean + 8 * math.sqrt(mean) + 25


def test_overflow_bound_holds_and_is_not_idle() -> None:
    """Against samples, at odds that can be seen."""
    count, variance, spread = 400_000, 5e7, 3e7
    random = np.random.default_rng(0)
    noise = SkellamSampler(variance).sample(KeyStream(b"o" * 32), count)
    total = noise + random.normal(scale=math.sqrt(spread), size=count)
    seen = np.count_nonzero(np.abs(total) > 2**15 - 1) / count
    bound = overflow_bound(16, spread, variance)
    assert seen > 1e-4
    assert seen <= bound < 40 * seen


def test_overflow_bound_covers_heavy_tails_of_small_noise() -> None:
    """A Skellam tail is heavier than the normal one of the same variance; the bound knows."""
    for variance in (0.01, 1.0, 100.0):
        reach = 2**15 - 1
        bound = overflow_bound(16, 0.0, variance)
        assert bound <= 1e-12
        assert bound >= 2 * math.exp(-(reach**2) / (2 * variance))
    assert overflow_bound(16, 0.0, 0.0) == 0.0
    assert overflow_bound(16, 1e12, 1e12) == pytest.approx(2.0, abs=1.01)
