"""Plans: sensitivity, word size, and the bounds they rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.secagg import plan_plain, plan_records
from carefl_secure.secagg.planner import (
    MAX_OVERFLOW,
    batch_bound,
    overflow_bound,
    rounded_sensitivity,
)


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


def test_inflation_is_held_and_tight() -> None:
    plan = plan_records(100_000, 2.0, 1.0, 500, 20, 10, inflation=1.02)
    noise = math.sqrt(plan.total_variance() + plan.clients / 4)
    wanted = plan.noise_multiplier * plan.scale * plan.clipping_norm
    assert noise / wanted == pytest.approx(1.02, rel=1e-6)
    assert plan.padded == 131_072


@pytest.mark.parametrize("dimension", [5_000, 131_072, 1_000_000])
@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("clients", "noise_clients", "batch"), [(3, 1, 100), (100, 60, 5000)])
def test_every_plan_keeps_its_promises(
    dimension: int, noise_multiplier: float, clients: int, noise_clients: int, batch: float
) -> None:
    plan = plan_records(dimension, 0.7, noise_multiplier, batch, clients, noise_clients)
    assert plan.bits in (16, 32)
    assert plan.overflow_probability <= MAX_OVERFLOW
    assert plan.l2_sensitivity > plan.scale * plan.clipping_norm
    assert plan.l1_sensitivity <= plan.l2_sensitivity * math.sqrt(plan.padded) * (1 + 1e-12)
    assert plan.total_variance() == (noise_multiplier * plan.l2_sensitivity) ** 2
    assert plan.share_variance() * noise_clients == pytest.approx(plan.total_variance())
    assert plan.total_variance(2.0) == (2 * plan.l2_sensitivity) ** 2
    assert plan.vector_bound > batch * plan.clipping_norm
    assert plan.rotated
    if plan.bits == 32:
        again = (plan.scale * plan.vector_bound) ** 2 / plan.padded + clients / 4
        spread = plan.share_variance() * clients
        assert overflow_bound(16, again, spread) > MAX_OVERFLOW


def test_both_word_sizes_occur() -> None:
    assert plan_records(5_000, 1.0, 1.0, 100, 5, 3).bits == 16
    assert plan_records(131_072, 1.0, 1.0, 1000, 100, 60).bits == 16
    assert plan_records(1_000_000, 1.0, 4.0, 1000, 100, 60).bits == 32


def test_skellam_costs_what_the_gaussian_costs_at_planned_scales() -> None:
    """The Renyi divergence of the plan's Skellam noise is the Gaussian's within 1e-3."""
    for dimension in (5_000, 1_000_000):
        plan = plan_records(dimension, 1.0, 1.0, 500, 10, 5)
        mu, l1, l2 = plan.total_variance(), plan.l1_sensitivity, plan.l2_sensitivity
        for order in (2, 8, 64):
            extra = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
            assert extra < 1e-3 * order * l2**2 / (2 * mu)


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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dimension": 0}, "dimension"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"clipping_norm": float("nan")}, "clipping_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"expected_batch": float("inf")}, "expected_batch"),
        ({"clients": 2}, "at least 3"),
        ({"noise_clients": 0}, "noise_clients"),
        ({"noise_clients": 11}, "noise_clients"),
        ({"inflation": 1.0}, "inflation"),
        ({"noise_multiplier": 1e6}, "no word"),
    ],
)
def test_bad_wishes_are_refused(change: dict[str, float], text: str) -> None:
    wish = {
        "dimension": 1000,
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "expected_batch": 100.0,
        "clients": 10,
        "noise_clients": 5,
    }
    with pytest.raises(ConfigError, match=text):
        plan_records(**{**wish, **change})  # type: ignore[arg-type]


def test_plain_plans_cannot_wrap() -> None:
    for clients in (3, 100, 1000):
        plan = plan_plain(50, 0.25, clients)
        largest = round(0.25 * (1 + 1e-5) * plan.scale + 0.5)
        assert clients * largest < 2**31
        assert plan.rounding_bound == clients / (2 * plan.scale)
        assert plan.rounding_bound < 0.25 * clients**2 * 2**-31
        assert (plan.bits, plan.padded, plan.rotated) == (32, 50, False)
        assert plan.total_variance() == 0
    with pytest.raises(ConfigError, match="bound"):
        plan_plain(50, 0.0, 3)


def test_the_hash_covers_the_plan() -> None:
    plan = plan_records(1000, 1.0, 1.0, 100, 10, 5)
    assert plan.hash() == plan_records(1000, 1.0, 1.0, 100, 10, 5).hash()
    others = [
        plan_records(1001, 1.0, 1.0, 100, 10, 5),
        plan_records(1000, 1.1, 1.0, 100, 10, 5),
        plan_records(1000, 1.0, 1.1, 100, 10, 5),
        plan_records(1000, 1.0, 1.0, 101, 10, 5),
        plan_records(1000, 1.0, 1.0, 100, 11, 5),
        plan_records(1000, 1.0, 1.0, 100, 10, 6),
        plan_plain(1000, 1.0, 10),
    ]
    assert len({plan.hash(), *(other.hash() for other in others)}) == 8
