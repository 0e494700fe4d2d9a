"""The least noise for a budget."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy import Event, SampledGaussian, SampledSkellam, calibrate_noise, epsilon


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


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    rate=st.floats(-4.0, 0.0).map(lambda x: 10.0**x),
    rounds=st.floats(1.0, 5.0).map(lambda x: round(10.0**x)),
    target=st.floats(-2.0, 1.0).map(lambda x: 10.0**x),
    delta=st.floats(-10.0, -2.0).map(lambda x: max(1e-10, 10.0**x)),
)
def test_every_budget_has_an_answer(rate: float, rounds: int, target: float, delta: float) -> None:
    """The answer keeps the budget, and a tenth less noise breaks it (or a jump lies between)."""

    def event(noise: float) -> SampledGaussian:
        return SampledGaussian(rate, noise, rounds)

    noise = calibrate_noise(event, target, delta)
    assert epsilon([event(noise)], delta) <= target
    assert epsilon([event(0.9 * noise)], delta) > target


@pytest.mark.parametrize(
    ("rate", "rounds", "target", "delta"),
    [(0.01, 1000, 0.3, 1e-6), (0.01, 200, 0.1, 1e-5), (0.1, 100_000, 0.1, 1e-6),
     (0.001, 10_000, 0.1, 1e-8), (1.0, 1000, 0.01, 1e-10), (1.0, 10**6, 0.001, 1e-10)],
)  # fmt: skip
def test_strong_budgets_over_many_rounds(rate: float, rounds: int, target: float, delta: float) -> None:
    noise = calibrate_noise(lambda z: SampledGaussian(rate, z, rounds), target, delta)
    price = epsilon([SampledGaussian(rate, noise, rounds)], delta)
    assert target * (1 - 2e-4) <= price <= target


@pytest.mark.parametrize(("rate", "rounds", "target"), [(0.00078, 1371, 69.7), (0.01, 1000, 150.0), (0.1, 100, 300.0)])
def test_weak_budgets_are_used_up_too(rate: float, rounds: int, target: float) -> None:
    """RDP says thousands there; no account may jump to it."""
    for event in (SampledGaussian(rate, 1.0, rounds), _skellam(rate, 1.0, rounds)):
        if isinstance(event, SampledSkellam):
            event = dataclasses.replace(event, dimension=1 << 20)

        def planned(noise: float, event: Event = event) -> Event:
            if isinstance(event, SampledGaussian):
                return dataclasses.replace(event, noise_multiplier=noise)
            return dataclasses.replace(event, variance=(noise * event.l2) ** 2)

        noise = calibrate_noise(planned, target, 1e-5)
        assert target * (1 - 2e-4) <= epsilon([planned(noise)], 1e-5) <= target


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
    with pytest.raises(ConfigError, match="target epsilon"):
        calibrate_noise(lambda z: _skellam(0.05, z, 50), target, 1e-5)


def test_a_price_that_is_no_number_is_no_promise() -> None:
    with pytest.raises(BudgetExceededError, match="no noise"):
        calibrate_noise(lambda noise: SampledGaussian(0.1, noise, 10), 8.0, 1e-5, price=lambda events, delta: math.nan)
