"""Renyi curves against divergences computed from the distributions themselves."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting import rdp as reference
from scipy.special import ive, logsumexp

from carefl_secure.privacy.accounting.events import SampledGaussian, SampledSkellam
from carefl_secure.privacy.accounting.skellam_rdp import (
    ORDERS,
    epsilon_from_rdp,
    gaussian_rdp,
    sampled_rdp,
    skellam_rdp,
)


def _skellam(variance: float, shift: int) -> np.ndarray:
    """Return log probabilities of Skellam noise, shifted, on a grid far beyond its spread."""
    reach = int(40 * np.sqrt(variance)) + 60
    probability = ive(np.abs(np.arange(-reach, reach + 1) - shift).astype(float), variance)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability))


def _divergence(p: np.ndarray, q: np.ndarray, order: int) -> float:
    seen = np.isfinite(p) & np.isfinite(q)
    return float(logsumexp(order * p[seen] + (1 - order) * q[seen]) / (order - 1))


@pytest.mark.parametrize("variance", [0.5, 4.0, 30.0, 400.0])
@pytest.mark.parametrize("vector", [(1,), (2,), (5,), (1, 1, 1, 1), (3, -1, 2)])
def test_the_bound_is_above_the_true_divergence(variance: float, vector: tuple[int, ...]) -> None:
    norm1, norm2 = float(np.abs(vector).sum()), float(np.linalg.norm(vector))
    orders = np.array([2.0, 3.0, 5.0, 9.0])
    bound = skellam_rdp(orders, norm1, norm2, variance)
    base = _skellam(variance, 0)
    for order, limit in zip(orders, bound, strict=True):
        true = sum(_divergence(_skellam(variance, step), base, int(order)) for step in vector)
        assert true <= limit
        if variance >= 30 * max(np.abs(vector)):
            assert limit <= 1.1 * true, "a bound this loose would not be the one of the paper"


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("shift", [1, 3])
def test_sampling_is_bounded_in_both_directions(rate: float, shift: int) -> None:
    variance = 6.0
    out, put = _skellam(variance, 0), _skellam(variance, shift)
    mixed = np.logaddexp(np.log1p(-rate) + out, np.log(rate) + put)
    bound = sampled_rdp(SampledSkellam(rate, float(shift), float(shift), variance))
    for order in (2, 3, 6, 12):
        limit = bound[ORDERS.index(order)]
        assert _divergence(mixed, out, order) <= limit
        assert _divergence(out, mixed, order) <= limit


def test_the_amplified_moment_is_exact_for_the_gaussian() -> None:
    for rate, noise in ((0.01, 1.0), (0.2, 0.8), (0.5, 3.0)):
        ours = sampled_rdp(SampledGaussian(rate, noise, 10))
        x = np.linspace(-30 * noise, 30 * noise + 70 / noise, 400_001)
        out = -0.5 * (x / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
        put = -0.5 * ((x - 1) / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
        mixed = np.logaddexp(np.log1p(-rate) + out, np.log(rate) + put)
        for order in (2, 3, 8, 16):
            moment = logsumexp(order * mixed + (1 - order) * out) + np.log(x[1] - x[0])
            assert ours[ORDERS.index(order)] == pytest.approx(10 * moment / (order - 1), rel=1e-6)


def test_rate_one_is_the_curve_itself_and_small_rates_join_it() -> None:
    event = SampledSkellam(1.0, 50.0, 10.0, 400.0, 3)
    whole = 3 * skellam_rdp(np.array(ORDERS, dtype=float), 50.0, 10.0, 400.0)
    assert np.allclose(sampled_rdp(event), whole)
    near = sampled_rdp(SampledSkellam(1.0 - 1e-12, 50.0, 10.0, 400.0, 3))
    assert np.allclose(near[:50], whole[:50], rtol=1e-6)


def test_more_sampling_more_steps_and_less_noise_never_cost_less() -> None:
    base = sampled_rdp(SampledSkellam(0.05, 500.0, 20.0, 400.0, 5))
    assert np.all(sampled_rdp(SampledSkellam(0.06, 500.0, 20.0, 400.0, 5)) > base)
    assert np.all(sampled_rdp(SampledSkellam(0.05, 500.0, 20.0, 399.0, 5)) > base)
    assert np.all(sampled_rdp(SampledSkellam(0.05, 500.0, 20.0, 400.0, 6)) > base)
    assert np.all(sampled_rdp(SampledSkellam(0.05, 600.0, 20.0, 400.0, 5)) > base)


def test_cached_curves_cannot_be_written_to() -> None:
    event = SampledGaussian(0.1, 1.0)
    first = sampled_rdp(event)
    first[:] = 0.0
    assert np.all(sampled_rdp(event) > 0.0)


def test_the_conversion_agrees_with_dp_accounting() -> None:
    for noise, delta in ((0.7, 1e-5), (2.0, 1e-3), (8.0, 1e-10)):
        curve = gaussian_rdp(np.array(ORDERS, dtype=float), noise)
        expected, _ = reference.compute_epsilon(ORDERS, curve, delta)
        assert epsilon_from_rdp(curve, delta) == pytest.approx(float(expected), rel=1e-12)
