"""Ceilings for membership attackers, against closed forms, tables and simulated attacks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import Event, SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.accounting.attack_bounds import attacker_bounds


def skellam(rate: float, noise: float, count: int, l2: float = 200.0) -> SampledSkellam:
    return SampledSkellam(rate, l2 * l2, l2, (noise * l2) ** 2, count, 1e-12)


def gaussian_rate(mu: float, false_positive: float) -> float:
    """Return the best true-positive rate between N(0, 1) and N(mu, 1)."""
    return float(ndtr(ndtri(false_positive) + mu))


@pytest.mark.parametrize(
    ("rate", "noise", "count", "mu", "advantage", "percent", "permille"),
    [
        (0.01, 0.5139, 300, 2.154, 0.291, 0.098, 0.028),
        (0.05, 0.6683, 200, 2.655, 0.559, 0.275, 0.104),
        (0.1, 1.0, 30, 1.157, 0.248, 0.059, 0.012),
    ],
)
def test_gaussian_histories_have_known_ceilings(
    rate: float, noise: float, count: int, mu: float, advantage: float, percent: float, permille: float
) -> None:
    """The table was made from loss distributions by other code."""
    found = attacker_bounds([SampledGaussian(rate, noise, count)])
    assert found.method == "PLD"
    assert found.true_positive_rate[0.01] == pytest.approx(percent, abs=6e-4)
    assert found.true_positive_rate[0.001] == pytest.approx(permille, abs=6e-4)
    assert advantage - 5e-4 <= found.advantage <= advantage + 3e-3
    assert mu - 1e-3 <= found.mu <= mu + 0.05


@pytest.mark.parametrize("mu", [0.5, 1.5, 4.0])
def test_the_plain_gaussian_has_a_closed_form(mu: float) -> None:
    found = attacker_bounds([SampledGaussian(1.0, 1.0 / mu)], (0.001, 0.01, 0.3))
    for rate, ceiling in found.true_positive_rate.items():
        exact = gaussian_rate(mu, rate)
        assert exact <= ceiling <= exact + 2e-3
    exact = 2.0 * float(ndtr(mu / 2.0)) - 1.0
    assert exact <= found.advantage <= exact + 3e-3
    assert mu <= found.mu <= 1.03 * mu + 0.02


@pytest.mark.parametrize(("rate", "noise", "count"), [(0.2, 1.5, 40), (1.0, 2.0, 1), (0.1, 0.69, 12)])
def test_skellam_ceilings_lie_above_those_of_as_much_gaussian_noise(rate: float, noise: float, count: int) -> None:
    """At such scales the two noises can hardly be distinguished; the bound may only be above."""
    loose = attacker_bounds([skellam(rate, noise, count)])
    tight = attacker_bounds([SampledGaussian(rate, noise, count)])
    assert loose.method == "RDP"
    for at in (0.01, 0.001):
        assert tight.true_positive_rate[at] <= loose.true_positive_rate[at] <= 1.0
    assert tight.advantage <= loose.advantage <= 1.0
    assert tight.mu <= loose.mu + 0.05
    for (false, low), (_, high) in zip(tight.curve, loose.curve, strict=True):
        assert false <= low <= high + 1e-9


@pytest.mark.parametrize(("rate", "noise", "count"), [(0.2, 1.5, 40), (0.1, 0.69, 12)])
def test_skellam_noise_of_known_dimension_has_the_ceilings_of_its_gaussian(
    rate: float, noise: float, count: int
) -> None:
    l2 = 1131.0
    event = SampledSkellam(rate, 256.0 * l2, l2, (noise * l2) ** 2, count, 1e-12, dimension=1 << 16)
    found = attacker_bounds([event])
    tight = attacker_bounds([SampledGaussian(rate, noise, count)])
    loose = attacker_bounds([dataclasses.replace(event, dimension=None)])
    assert (found.method, loose.method) == ("PLD", "RDP")
    assert "Skellam" in found.why
    for at in (0.01, 0.001):
        low, high = tight.true_positive_rate[at], loose.true_positive_rate[at]
        assert low <= found.true_positive_rate[at] <= min(high, 1.05 * low)
    assert tight.advantage - 1e-3 <= found.advantage <= loose.advantage + 1e-9
    for (_, low), (_, here) in zip(tight.curve, found.curve, strict=True):
        assert low - 1e-6 <= here


def test_so_little_noise_that_its_gaussian_is_worth_less_keeps_the_renyi_curve() -> None:
    event = SampledSkellam(1.0, 10.0, 10.0, 100.0, 1, 0.0, dimension=1)
    assert attacker_bounds([event]).method == "RDP"


def test_no_simulated_attack_passes_the_skellam_ceiling() -> None:
    """The best test on one coordinate: the likelihood ratio of shifted Skellam noise."""
    rng = np.random.default_rng(5)
    variance, shift, draws = 30.0, 6, 400_000
    event = SampledSkellam(1.0, float(shift), float(shift), variance)
    found = attacker_bounds([event], (0.001, 0.01, 0.1, 0.5))
    half = variance / 2.0
    noise = rng.poisson(half, draws) - rng.poisson(half, draws)
    other = rng.poisson(half, draws) - rng.poisson(half, draws) + shift
    for rate, ceiling in found.true_positive_rate.items():
        threshold = np.quantile(noise, 1.0 - rate)  # the ratio grows with the value
        reached = float(np.mean(other > threshold))
        error = 5.0 * math.sqrt(reached * (1.0 - reached) / draws)
        assert reached - error <= ceiling
        assert ceiling <= min(1.0, 4.0 * reached)  # and it is not just any bound
    gap = max(float(np.mean(other > t) - np.mean(noise > t)) for t in range(-10, 20))
    assert gap <= found.advantage <= 1.5 * gap


@pytest.mark.parametrize("event", [SampledGaussian(0.1, 1.0, 10), skellam(0.1, 1.0, 10)])
def test_more_of_everything_helps_the_attacker(event: Event) -> None:
    base = attacker_bounds([event])
    more = attacker_bounds([event.times(20)])
    assert more.true_positive_rate[0.01] > base.true_positive_rate[0.01] > 0.01
    assert more.advantage > base.advantage
    assert more.mu > base.mu
    split = attacker_bounds([event.times(4), event.times(6)])
    assert split == base


def test_the_rates_obey_every_epsilon() -> None:
    """A ceiling can never pass the line of a pair (epsilon, delta) that another account proves."""
    event = SampledGaussian(0.1, 1.0, 30)
    found = attacker_bounds([event])
    for delta in (1e-3, 1e-5):
        cost = epsilon([event], delta)
        for rate, ceiling in found.true_positive_rate.items():
            assert ceiling <= math.exp(cost) * rate + delta + 1e-9


def test_rounding_that_fails_is_added_on() -> None:
    sound = attacker_bounds([SampledSkellam(0.1, 1e4, 1e2, 1e4, 10)])
    shaky = attacker_bounds([SampledSkellam(0.1, 1e4, 1e2, 1e4, 10, 1e-4)])
    assert shaky.advantage == pytest.approx(sound.advantage + 2e-3, rel=1e-6)
    assert shaky.true_positive_rate[0.001] > sound.true_positive_rate[0.001] + 1e-3


def test_nothing_released_gives_nothing_away() -> None:
    found = attacker_bounds([])
    assert found.true_positive_rate == {0.01: 0.01, 0.001: 0.001}
    assert (found.advantage, found.mu) == (0.0, 0.0)


def test_next_to_no_noise_hides_nothing() -> None:
    for event in (SampledGaussian(1.0, 0.01, 5), skellam(1.0, 0.02, 5)):
        found = attacker_bounds([event])
        assert found.true_positive_rate[0.001] > 0.999
        assert 0.999 < found.advantage <= 1.0
        assert found.mu > 20.0


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ConfigError, match="false-positive"):
        attacker_bounds([SampledGaussian(0.1, 1.0)], (rate,))
