"""Plans: noise, word size, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.secagg import EncodingPlan, plan_clients, plan_plain, plan_records
from carefl_secure.secagg.encoding.planner import MAX_OVERFLOW, overflow_bound


def test_inflation_is_held_and_tight() -> None:
    plan = plan_records(100_000, 2.0, 1.0, 500, 20, 10, inflation=1.02)
    noise = math.sqrt(plan.total_variance() + plan.clients / 4)
    wanted = plan.noise_multiplier * plan.scale * plan.clipping_norm
    assert noise / wanted == pytest.approx(1.02, rel=1e-6)
    assert plan.padded == 100_352


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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dimension": 0}, "dimension"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"clipping_norm": float("nan")}, "clipping_norm"),
        ({"clipping_norm": float("inf")}, "clipping_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"clients": 2}, "at least 3"),
        ({"noise_clients": 0}, "noise_clients"),
        ({"noise_clients": 11}, "noise_clients"),
        ({"inflation": 1.0}, "inflation"),
        ({"noise_multiplier": 1e6}, "no word"),
    ],
)
@pytest.mark.parametrize("unit", ["record", "client"])
def test_bad_wishes_are_refused(unit: str, change: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_for(unit, **change)


def test_a_batch_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected_batch"):
        plan_for("record", expected_batch=float("inf"))


def plan_for(unit: str, **change: float) -> EncodingPlan:
    wish: dict[str, Any] = {
        "dimension": 1000,
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "clients": 10,
        "noise_clients": 5,
    }
    if unit == "client":
        return plan_clients(**{**wish, **change})
    return plan_records(**{**wish, "expected_batch": 100.0, **change})


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
