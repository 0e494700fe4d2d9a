"""Composed loss distributions never price below the truth, whatever floats do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import binom

from carefl_secure.privacy import SampledGaussian, SampledSkellam, calibrate_noise, epsilon, rdp_epsilon
from carefl_secure.privacy.accounting.attack_bounds import attacker_bounds
from carefl_secure.privacy.accounting.gaussian_losses import gaussian_losses
from carefl_secure.privacy.accounting.loss_distribution import composed_deltas, composed_epsilon, usable_grid


def exact(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism in closed form (Balle and Wang, 2018)."""

    def excess(eps: float) -> float:
        first = math.exp(log_ndtr(mu / 2 - eps / mu))
        return first - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)) - delta

    return float(brentq(excess, 0.0, mu**2 / 2 + 40 * mu, xtol=1e-12))


@pytest.mark.parametrize("delta", [1e-10, 1e-9, 1e-5])
@pytest.mark.parametrize(("noise", "count"), [(50.0, 100_000), (1000.0, 1_000_000), (4.0, 20)])
def test_many_rounds_at_tiny_deltas_against_the_closed_form(noise: float, count: int, delta: float) -> None:
    truth = exact(math.sqrt(count) / noise, delta)
    found = epsilon([SampledGaussian(1.0, noise, count)], delta)
    assert truth <= found <= truth + 0.03


def test_a_long_sampled_run_at_a_tiny_delta() -> None:
    """An FFT without a tilt gives 24.5595 here, below the true 24.5733."""
    found = epsilon([SampledGaussian(0.5, 50.0, 100_000)], 1e-10)
    assert 24.5733 <= found <= 24.575


def test_an_epsilon_above_a_hundred_is_tight() -> None:
    found = epsilon([SampledGaussian(1.0, 0.1, 2)], 1e-5)
    truth = exact(math.sqrt(2) / 0.1, 1e-5)
    assert 100 < truth <= found <= 1.001 * truth
    assert found < 0.99 * rdp_epsilon([SampledGaussian(1.0, 0.1, 2)], 1e-5)


def test_two_kinds_cost_more_than_either_and_the_order_is_free() -> None:
    one, other = SampledGaussian(0.1, 1.0, 30), SampledGaussian(0.02, 0.7, 10)
    both = composed_epsilon([one, other], 1e-6, 1e-3)
    assert both == pytest.approx(composed_epsilon([other, one], 1e-6, 1e-3), rel=1e-9)
    assert both > max(composed_epsilon([e], 1e-6, 1e-3) for e in (one, other))


def test_grids_are_finer_for_weak_losses_and_coarser_for_huge_ones() -> None:
    assert usable_grid([SampledGaussian(0.01, 1.0, 1000)], 1e-4) == 1e-4
    assert usable_grid([SampledGaussian(0.01, 1e4, 1000)], 1e-4) < 1e-6
    assert usable_grid([SampledGaussian(1.0, 0.1, 10)], 1e-4) > 1e-3


@pytest.mark.parametrize("noise", [1e-3, 1e-100, 1e-152, 1e-160, 1e-308])
@pytest.mark.parametrize("rate", [1e-6, 0.01, 1.0])
def test_next_to_no_noise_is_never_free(noise: float, rate: float) -> None:
    event = SampledGaussian(rate, noise, 10)
    honest = [SampledGaussian(0.5, 1.0, 10)]
    alone, together = epsilon(honest, 1e-6), epsilon([*honest, event], 1e-6)
    assert together > alone > 1.0
    assert rdp_epsilon([event], 1e-6) > 1e3
    assert attacker_bounds([event]).true_positive_rate[0.01] > 0.01


@pytest.mark.parametrize("variance", [1e-300, 1e-10, 1e300])
def test_extreme_skellam_noise(variance: float) -> None:
    found = epsilon([SampledSkellam(0.1, 20.0, 5.0, variance, 10, 0.0, 16)], 1e-5)
    assert found > 1e3 if variance < 1.0 else found < 1e-3


def test_noise_that_is_unbounded_keeps_any_budget() -> None:
    noise = calibrate_noise(lambda z: SampledGaussian(1.0, z, 1), 1e-3, 1e-10)
    assert 0.99e-3 < exact(1.0 / noise, 1e-10) <= 1e-3


@pytest.mark.parametrize(
    ("rate", "noise", "clients"),
    [*itertools.product((1.0, 0.5, 0.01, 1e-6), (0.3, 2.0, 1e4), (1,)), (0.3, 2.0, 2), (0.01, 1.0, 4), (1e-6, 3.0, 2)],
)
def test_a_distribution_is_that_of_the_library(rate: float, noise: float, clients: int) -> None:
    """The same masses above every loss, but for the rounding of single divergences, which a step magnifies."""
    step = 1e-3
    if clients == 1:
        expected = pld.from_gaussian_mechanism(noise, value_discretization_interval=step, sampling_prob=rate)
    else:
        weights = binom.pmf(range(clients + 1), clients, rate)
        expected = pld.from_mixture_gaussian_mechanism(
            noise, range(clients + 1), weights, value_discretization_interval=step
        )
    found = gaussian_losses(rate, noise, step, clients)
    assert (found[0] is found[1]) == (rate == 1.0)
    epsilons = step * np.arange(-2000, 20_000, 7)
    for here, there in zip(found, (expected._pmf_remove, expected._pmf_add), strict=True):
        assert here.probabilities.min() >= 0.0
        assert here.probabilities.sum() + here.infinite == pytest.approx(1.0, abs=1e-9)
        losses = step * (here.first + np.arange(here.probabilities.size))
        mine = [np.sum(-np.expm1(e - losses[losses > e]) * here.probabilities[losses > e]) for e in epsilons]
        theirs = there.get_delta_for_epsilon(epsilons)
        assert np.abs(np.array(mine) + here.infinite - theirs).max() < 1e-11


@pytest.mark.parametrize(("rate", "noise", "count"), [(0.2, 0.8, 40), (0.01, 1.0, 500), (0.5, 20.0, 100)])
def test_a_composed_curve_lies_above_the_librarys_by_rounding_alone(rate: float, noise: float, count: int) -> None:
    step, deltas = composed_deltas([SampledGaussian(rate, noise, count)], 1e-3)
    library = pld.from_gaussian_mechanism(noise, value_discretization_interval=step, sampling_prob=rate)
    places = np.arange(0, len(deltas), max(1, len(deltas) // 300))
    expected = np.asarray(library.self_compose(count).get_delta_for_epsilon(step * places))
    assert np.abs(deltas[places] - expected).max() < 1e-9
    assert (np.diff(deltas) <= 1e-15).all()
