"""The Gaussian inside Skellam noise: every step of the proof, and prices against brute force."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ive
from scipy.stats import norm

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import (
    SampledGaussian,
    SampledSkellam,
    accountant_name,
    calibrate_noise,
    epsilon,
    event_from_json,
    rdp_epsilon,
)
from carefl_secure.privacy.accounting.accountant import coarse_epsilon
from carefl_secure.privacy.accounting.skellam_pld import closeness, hidden_gaussian, hidden_history, least_kappa

Floats = NDArray[np.float64]
DIMENSION = 1 << 20


def planned(rate: float, noise: float, count: int = 1, dimension: int = DIMENSION) -> SampledSkellam:
    l2 = 3749.0  # scale 3707 in 2^20 coordinates after rounding
    return SampledSkellam(rate, l2 * 1024.0, l2, (noise * l2) ** 2, count, 0.0, dimension)


class Proof:
    """The quantities of the proof, in high precision."""

    def __init__(self, variance: float, kappa: float) -> None:
        mpmath.mp.dps = 40
        self.mu = mpmath.mpf(variance)
        self.c = kappa * mpmath.sqrt(self.mu)
        ratio = self.c / self.mu
        self.theta, self.edge = mpmath.sqrt(2 * ratio), mpmath.sqrt(6 * ratio)
        self.nu = mpmath.exp(-1.5 * mpmath.mpf(kappa) ** 2) / mpmath.pi
        self.reach = self.place(self.theta)

    def place(self, theta: mpmath.mpf) -> mpmath.mpf:
        return self.mu * mpmath.sinh(theta) - (self.mu - self.c) * theta

    def phi(self, x: mpmath.mpf) -> mpmath.mpf:
        def under(t: mpmath.mpf) -> mpmath.mpf:
            exponent = self.mu * (mpmath.cos(t) - 1) + (self.mu - self.c) * t * t / 2
            return mpmath.exp(exponent) * mpmath.cos(t * x)

        return mpmath.quad(under, mpmath.linspace(0, self.edge, 10)) / mpmath.pi


@pytest.mark.parametrize(("variance", "kappa"), [(16, 1), (400, 2), (400, 5), (1e4, 4), (4e6, 6)])
def test_the_rule_is_hardly_negative_and_falls_off(variance: float, kappa: float) -> None:
    proof = Proof(variance, kappa)
    for part in range(21):
        theta = proof.theta * part / 20
        assert proof.phi(proof.place(theta)) >= -theta * proof.nu
    for factor in (1.001, 1.1, 1.4, 2.0, 3.0):
        assert abs(proof.phi(proof.reach * factor)) <= (proof.theta + proof.edge) * proof.nu


def rule(variance: float, kappa: float, step: int = 16) -> tuple[Floats, Floats]:
    """Return the law of the rule applied to Gaussian noise, and the Skellam law, on integers."""
    mu, c = variance, kappa * math.sqrt(variance)
    theta, edge = math.sqrt(2 * c / mu), math.sqrt(6 * c / mu)
    reach = mu * math.sinh(theta) - (mu - c) * theta
    span = math.ceil(reach)
    t, width = np.linspace(0.0, edge, 2001, retstep=True)
    weight = np.full(t.size, width)
    weight[[0, -1]] /= 2
    height = np.exp(mu * (np.cos(t) - 1) + (mu - c) * t * t / 2) * weight / math.pi
    far = math.ceil(9 * math.sqrt(mu)) + span
    law = np.zeros(2 * far + 1)
    for place in range(step):  # y = n + (place + 1/2) / step over all whole n
        part = (place + 0.5) / step - 0.5
        whole = np.arange(-far + span, far - span + 1)
        out = np.arange(-span, span + 1)
        x = part - out
        phi = np.cos(np.outer(x, t)) @ height
        phi = np.where(np.abs(x) <= reach, np.maximum(phi, 0.0), 0.0)
        chosen = phi / max(1.0, phi.sum())
        chosen[span] += 1.0 - chosen.sum()
        mass = norm.pdf(whole + part, scale=math.sqrt(mu - c)) / step
        law += np.convolve(mass, chosen)
    return law, ive(np.abs(np.arange(-far, far + 1)).astype(float), mu)


@pytest.mark.parametrize(("variance", "kappa"), [(36, 1.5), (100, 2.5), (400, 2), (400, 3)])
def test_gaussian_noise_and_the_rule_make_skellam_noise(variance: float, kappa: float) -> None:
    law, skellam = rule(variance, kappa)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    distance = np.abs(law - skellam).sum() / 2
    assert 1e-4 * closeness(variance, kappa) < distance + 1e-12 <= closeness(variance, kappa)


def test_rounded_gaussian_noise_of_full_variance_is_not_close() -> None:
    """Without giving up variance the bound would be false, so the test above can fail."""
    ends = np.arange(-300.5, 301.0) / 20.0
    rounded = np.diff(norm.cdf(ends))
    skellam = ive(np.abs(np.arange(-300, 301)).astype(float), 400.0)
    assert np.abs(rounded - skellam).sum() / 2 > 10 * closeness(400, 4)


def test_the_distance_falls_as_said() -> None:
    for root in (30.0, 200.0, 2000.0):
        kappas = np.arange(1.0, 7.5, 0.5)
        found = np.array([closeness(root**2, kappa) for kappa in kappas])
        assert (np.diff(found) < 0).all()
        assert (found >= np.exp(-1.5 * kappas**2)).all()
        assert (found <= 60 * root * np.exp(-1.5 * kappas**2)).all()


@pytest.mark.parametrize(("variance", "kappa"), [(400, 0.9), (400, 5.01), (9, 1.0), (400, math.nan)])
def test_outside_the_proof_nothing_is_claimed(variance: float, kappa: float) -> None:
    with pytest.raises(ConfigError, match="kappa"):
        closeness(variance, kappa)


def test_the_least_kappa_is_the_least() -> None:
    for variance, distance in ((400.0, 1e-9), (3.7e6, 1e-25), (1e4, 0.3)):
        kappa = least_kappa(variance, distance)
        assert kappa is not None
        assert closeness(variance, kappa) <= distance
        assert kappa == 1.0 or closeness(variance, kappa - 0.25) > distance
    assert least_kappa(400.0, 1e-30) is None
    assert least_kappa(9.0, 0.5) is None
    assert least_kappa(400.0, 0.0) is None


def test_the_hidden_event_is_weaker_and_pays_for_every_coordinate() -> None:
    event = planned(0.1, 0.7, 40)
    found = hidden_gaussian(event, 1e-15)
    assert found is not None
    gaussian, distance = found
    assert 0.995 * 0.7 < gaussian.noise_multiplier < 0.7
    assert (gaussian.sample_rate, gaussian.count) == (0.1, 40)
    kappa = (event.variance - (gaussian.noise_multiplier * event.l2) ** 2) / event.variance**0.5
    assert distance == pytest.approx(40 * DIMENSION * closeness(event.variance, kappa), rel=1e-6)
    assert distance <= 1e-15


def test_the_lost_delta_is_charged_at_the_ceiling() -> None:
    events = [planned(0.1, 0.7, 40), planned(0.2, 0.9, 3)]
    for ceiling in (1.0, 30.0):
        found = hidden_history(events, 1e-5, ceiling)
        assert found is not None
        distance = sum(
            e.count
            * DIMENSION
            * closeness(e.variance, (e.variance - (g.noise_multiplier * e.l2) ** 2) / e.variance**0.5)
            for e, g in zip(events, found[0], strict=True)
        )
        assert found[1] == pytest.approx((1 + math.exp(ceiling)) * distance, rel=1e-4)
        assert 0 < found[1] <= 1e-8
    assert hidden_history(events, 1e-5, 601.0) is None


def losses(variance: float, shift: int, dimensions: int, grid: float) -> tuple[Floats, Floats]:
    """Return the losses of a shift in every coordinate and their mass under the noise alone."""
    reach = int(9 * math.sqrt(variance)) + 30
    places = np.arange(-reach, reach + 1)
    mass = ive(np.abs(places).astype(float), variance)
    loss = np.log(ive(np.abs(places - shift).astype(float), variance)) - np.log(mass)
    return convolved(loss, mass, dimensions, grid)


def convolved(loss: Floats, mass: Floats, times: int, grid: float) -> tuple[Floats, Floats]:
    """Add up independent losses, each taken to the next grid point."""
    first = int(np.round(loss.min() / grid))
    counts = np.bincount(np.round(loss / grid).astype(int) - first, weights=mass)
    size = times * (counts.size - 1) + 1
    length = 1 << size.bit_length()
    total = np.fft.irfft(np.fft.rfft(counts, length) ** times, length)[:size]
    return (np.arange(size) + times * first) * grid, np.maximum(total, 0.0)


def true_epsilon(variance: float, shift: int, dimensions: int, rate: float, steps: int, delta: float) -> float:
    """Compose the exact laws of a sampled integer vector, both directions; within 0.002."""
    grid = 2e-4
    loss, mass = losses(variance, shift, dimensions, grid)
    mixed = np.log(1 - rate + rate * np.exp(loss))
    worst = 0.0
    for value, weight in ((mixed, mass * np.exp(mixed)), (-mixed, mass)):
        total, chance = convolved(value, weight, steps, grid)
        low, high = 0.0, 60.0
        for _ in range(50):
            middle = (low + high) / 2
            excess = chance @ np.maximum(0.0, -np.expm1(np.minimum(middle - total, 0.0)))
            low, high = (middle, high) if excess > delta else (low, middle)
        worst = max(worst, high)
    return worst


def test_the_brute_force_finds_a_known_price() -> None:
    """Skellam noise this large is Gaussian to a thousandth."""
    found = true_epsilon(250_000.0, 500, 1, 1.0, 4, 1e-5)
    gaussian = epsilon([SampledGaussian(1.0, 1.0, 4)], 1e-5)
    assert found == pytest.approx(gaussian, abs=0.01)


@pytest.mark.parametrize(
    ("root", "shift", "dimensions", "rate", "steps"),
    [
        (60, 30, 1, 1.0, 1),
        (30, 20, 1, 0.1, 12),
        (60, 60, 1, 0.05, 30),
        (60, 35, 2, 0.3, 5),
        (60, 20, 3, 0.5, 8),
        (150, 100, 3, 0.1, 10),
        (150, 70, 2, 1.0, 3),
    ],
)
def test_never_below_the_truth_and_not_far_above(
    root: int, shift: int, dimensions: int, rate: float, steps: int
) -> None:
    norm2 = shift * math.sqrt(dimensions)
    event = SampledSkellam(rate, float(shift * dimensions), norm2, float(root**2), steps, 0.0, dimensions)
    delta = 1e-5
    truth = true_epsilon(float(root**2), shift, dimensions, rate, steps, delta)
    by_pld = coarse_epsilon([event], delta, 1e-4)
    assert truth - 0.002 <= by_pld
    # the noise given up, kappa / (2 root) of its standard deviation, is what it costs
    assert by_pld <= truth * (1 + 8 / root) + 0.02
    assert truth - 0.002 <= epsilon([event], delta) <= by_pld + 1e-4  # its grid is coarser


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "gaussian"), [(0.01, 300, 1e-5, 0.5139), (0.05, 200, 1e-3, 0.6683)]
)
def test_calibrated_noise_is_next_to_that_of_the_gaussian(
    rate: float, steps: int, delta: float, gaussian: float
) -> None:
    noise = calibrate_noise(lambda z: planned(rate, z, steps), 8.0, delta)
    assert gaussian - 5e-5 < noise < 1.01 * gaussian
    assert 7.99 <= epsilon([planned(rate, noise, steps)], delta) <= 8.0
    assert accountant_name([planned(rate, noise, steps)], delta).startswith("PLD")


@pytest.mark.parametrize("dimension", [1, 5000, 1 << 24])
@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.02, 0.6, 50), (1.0, 6.0, 20)])
def test_never_below_the_gaussian_and_never_above_rdp(rate: float, noise: float, steps: int, dimension: int) -> None:
    event = planned(rate, noise, steps, dimension)
    gaussian = epsilon([SampledGaussian(rate, noise, steps)], 1e-5)
    price = epsilon([event], 1e-5)
    assert gaussian < price <= rdp_epsilon([event], 1e-5)
    assert price <= 1.02 * gaussian
    assert price <= coarse_epsilon([event], 1e-5) <= price * 1.01


def test_more_of_anything_costs_more() -> None:
    base = epsilon([planned(0.05, 0.8, 20)], 1e-5)
    for dearer in (
        planned(0.05, 0.8, 25),
        planned(0.06, 0.8, 20),
        planned(0.05, 0.75, 20),
        planned(0.05, 0.8, 20, 1 << 29),
        dataclasses.replace(planned(0.05, 0.8, 20), beta=1e-7),
    ):
        assert epsilon([dearer], 1e-5) > base


def test_rounds_one_by_one_are_one_long_round() -> None:
    rounds = [planned(0.05, 0.8)] * 20
    assert epsilon(rounds, 1e-5) == epsilon([planned(0.05, 0.8, 20)], 1e-5)


def test_unlike_events_compose() -> None:
    first, second, third = (planned(0.05, 0.8, 10), planned(0.1, 1.2, 7), SampledGaussian(0.02, 1.0, 30))
    history = [first, second, third]
    bare = [SampledGaussian(0.05, 0.8, 10), SampledGaussian(0.1, 1.2, 7), third]
    price = epsilon(history, 1e-5)
    assert epsilon(bare, 1e-5) < price < 1.02 * epsilon(bare, 1e-5)
    assert price == pytest.approx(epsilon(history[::-1], 1e-5), rel=1e-9)
    assert price > epsilon(history[:2], 1e-5) > epsilon(history[:1], 1e-5)


@pytest.mark.parametrize(
    "event",
    [
        dataclasses.replace(planned(0.05, 0.8, 20), dimension=None),
        SampledSkellam(0.1, 4.0, 2.0, 9.0, 5, 0.0, 4),  # too little noise for the proof
        SampledSkellam(0.1, 4.0, 2.0, 16.0, 5, 0.0, DIMENSION),
    ],
)
def test_where_the_proof_does_not_reach_renyi_stays(event: SampledSkellam) -> None:
    assert epsilon([event], 1e-5) == rdp_epsilon([event], 1e-5)
    assert accountant_name([event]).startswith("RDP")


def test_one_event_outside_the_proof_takes_the_history_with_it() -> None:
    history = [planned(0.05, 0.8, 20), dataclasses.replace(planned(0.05, 0.8), dimension=None)]
    assert epsilon(history, 1e-5) == rdp_epsilon(history, 1e-5)


def test_events_of_older_ledgers_are_still_read() -> None:
    old = {"kind": "sampled_skellam", "sample_rate": 0.1, "l1": 4.0, "l2": 2.0, "variance": 9.0}
    event = event_from_json({**old, "count": 3, "beta": 0.0})
    assert event == SampledSkellam(0.1, 4.0, 2.0, 9.0, 3)
    assert "dimension" not in event.to_json()
    new = dataclasses.replace(event, dimension=64)
    assert new.to_json()["dimension"] == 64
    assert event_from_json(new.to_json()) == new


@pytest.mark.parametrize("dimension", [0, -1, 1.5, True])
def test_impossible_dimensions_are_refused(dimension: object) -> None:
    with pytest.raises(ConfigError, match="dimension"):
        SampledSkellam(0.1, 4.0, 2.0, 9.0, 1, 0.0, dimension)  # type: ignore[arg-type]
