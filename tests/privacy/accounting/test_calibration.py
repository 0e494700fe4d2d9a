"""The least noise for a budget."""

from __future__ import annotations

import math

import pytest

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy import SampledGaussian, SampledSkellam, calibrate_noise, epsilon


def _skellam(rate: float, noise: float, count: int) -> SampledSkellam:
    l2 = 3749.0  # scale 3707 in 2^20 coordinates after rounding
    return SampledSkellam(rate, l2 * 1024.0, l2, (noise * l2) ** 2, count)


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "expected"), [(0.01, 300, 1e-5, 0.5139), (0.05, 200, 1e-3, 0.6683)]
)
def test_gaussian_figures(rate: float, steps: int, delta: float, expected: float) -> None:
    noise = calibrate_noise(lambda z: SampledGaussian(rate, z, steps), 8.0, delta)
    assert noise == pytest.approx(expected, abs=1e-3)
    assert 7.99 <= epsilon([SampledGaussian(rate, noise, steps)], delta) <= 8.0


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "expected"), [(0.01, 300, 1e-5, 0.5594), (0.05, 200, 1e-3, 0.7475)]
)
def test_skellam_figures(rate: float, steps: int, delta: float, expected: float) -> None:
    noise = calibrate_noise(lambda z: _skellam(rate, z, steps), 8.0, delta)
    assert noise == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("target", [0.01, 0.3, 1.0, 8.0, 50.0, 5000.0])
def test_the_budget_is_met_and_used(target: float) -> None:
    noise = calibrate_noise(lambda z: _skellam(0.02, z, 100), target, 1e-5)
    assert target * (1 - 1e-4) <= epsilon([_skellam(0.02, noise, 100)], 1e-5) <= target


def test_the_past_counts() -> None:
    past = [_skellam(0.05, 1.0, 50)]
    alone = calibrate_noise(lambda z: _skellam(0.05, z, 50), 6.0, 1e-5)
    after = calibrate_noise(lambda z: _skellam(0.05, z, 50), 6.0, 1e-5, history=past)
    assert after > alone
    assert epsilon([*past, _skellam(0.05, after, 50)], 1e-5) <= 6.0


def test_a_spent_budget_is_said_to_be_spent() -> None:
    past = [_skellam(0.05, 0.5, 500)]
    with pytest.raises(BudgetExceededError, match="no noise"):
        calibrate_noise(lambda z: _skellam(0.05, z, 50), 2.0, 1e-5, history=past)


def test_a_budget_without_end_is_refused() -> None:
    with pytest.raises(ConfigError):
        calibrate_noise(lambda z: _skellam(0.05, z, 50), 1e30, 1e-5)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_budgets_that_are_none_are_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="target_epsilon"):
        calibrate_noise(lambda z: _skellam(0.05, z, 50), target, 1e-5)
