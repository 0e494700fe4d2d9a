r"""The Gaussian noise that hides inside Skellam noise, and how much is lost by saying so.

Up to a total variation distance far below any delta, Skellam noise of variance :math:`\mu` on an integer is Gaussian
noise of the slightly smaller variance :math:`\mu - \kappa\sqrt\mu` followed by a random rule that knows neither the
integer nor the records. What is proved for the Gaussian mechanism then holds for the Skellam mechanism, with the
distance added to delta. Statement and proof are in ``docs/accounting.md``; the names below are those of the proof.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam

Hidden = tuple[list[SampledGaussian], float]
"""A Gaussian history, and the distance or delta that it costs to put it in the place of another."""

_SHARE = 1e-3  # of delta, given up for the distance
_STEP = 0.25  # kappa comes in such steps, so that a growing history meets the same Gaussian again
_LEAST, _LARGEST_RATIO = 1.0, 0.25  # where the proof holds: kappa, and kappa / sqrt(variance)
_LARGEST_CEILING = 600.0  # its exponential must be finite
_ROUNDING = 1.001  # the formula below is evaluated in floats


def closeness(variance: float, kappa: float) -> float:
    r"""Bound the distance between Skellam noise and post-processed Gaussian noise, per coordinate.

    With :math:`a = \kappa/\sqrt\mu`, :math:`\theta = \sqrt{2a}`, :math:`t_1 = \sqrt{6a}`,
    :math:`K = \mu(\sinh\theta - \theta) + \kappa\sqrt\mu\,\theta`,
    :math:`N = \lceil 2\kappa\sqrt\mu \rceil` and :math:`\nu = e^{-3\kappa^2/2} / \pi`:

    .. math::
        \tau = P(|X| > N) + (2N+1)\left(e^{-\mu(1-\cos t_1)} + (\theta + t_1)\nu\right)
        + (2K+1)\,\theta\,\nu + 2\nu\left(\frac{\theta}{\sin t_1} + \frac{t_1}{1-e^{-\theta}}\right)

    for variance :math:`\mu` and :math:`\kappa` from 1 to :math:`\sqrt\mu / 4` (ConfigError
    otherwise). :math:`\tau` may exceed 1 where it says nothing.

    Guarantees
    ----------
    There is a rule that turns a real number into a random integer and commutes with adding an
    integer, such that the rule applied to :math:`x + N(0, \mu - \kappa\sqrt\mu)` lies within total
    variation distance :math:`\tau` of :math:`x` plus Skellam noise, for every integer :math:`x`.
    """
    root = math.sqrt(variance)
    ratio = kappa / root
    if not (kappa >= _LEAST and ratio <= _LARGEST_RATIO):
        raise ConfigError(
            f"kappa is {kappa}; the bound is proved from {_LEAST:g} to a quarter of the standard "
            f"deviation, here {root:g}"
        )
    theta, edge = math.sqrt(2.0 * ratio), math.sqrt(6.0 * ratio)
    nu = math.exp(-1.5 * kappa**2) / math.pi
    reach = variance * (math.sinh(theta) - theta) + kappa * root * theta
    far = math.ceil(2.0 * kappa * root)
    slope = far / variance
    rate = far * math.asinh(slope) - far * slope / (1.0 + math.sqrt(1.0 + slope**2))
    beyond_far = 2.0 * math.exp(-rate)  # Chernoff
    cut = math.exp(-2.0 * variance * math.sin(edge / 2.0) ** 2)
    inside = (2.0 * far + 1.0) * (cut + (theta + edge) * nu)
    negative = (2.0 * reach + 1.0) * theta * nu
    outside = 2.0 * nu * (theta / math.sin(edge) - edge / math.expm1(-theta))
    return _ROUNDING * (beyond_far + inside + negative + outside)


@functools.lru_cache(maxsize=1024)
def least_kappa(variance: float, distance: float) -> float | None:
    """Find the least kappa, a multiple of 1/4, with ``closeness`` at most ``distance``; None outside the proof."""
    last = math.floor(_LARGEST_RATIO * math.sqrt(variance) / _STEP)
    if last * _STEP < _LEAST or distance <= 0.0:
        return None
    # the exponential alone must be below the distance, so nothing is lost by starting there
    start = math.sqrt(max(0.0, -math.log(distance)) / 1.5)
    for step in range(math.floor(max(_LEAST, start - 2.0 * _STEP) / _STEP), last + 1):
        kappa = step * _STEP
        if closeness(variance, kappa) <= distance:
            return kappa
    return None


def hidden_gaussian(event: SampledSkellam, distance: float) -> tuple[SampledGaussian, float] | None:
    r"""Find a Gaussian event of which an event with Skellam noise is nearly a post-processing.

    Returns the event with noise multiplier :math:`\sqrt{\mu - \kappa\sqrt\mu} / l_2`, and the total
    variation distance used, at most ``distance`` over all coordinates and all sums. None where the
    dimension is unknown or the noise too small.
    """
    if event.dimension is None:
        return None
    coordinates = float(event.dimension) * event.count
    kappa = least_kappa(event.variance, distance / coordinates)
    if kappa is None:
        return None
    left = event.variance - kappa * math.sqrt(event.variance)
    gaussian = SampledGaussian(event.sample_rate, math.sqrt(left) / event.l2, event.count)
    return gaussian, coordinates * closeness(event.variance, kappa)


def gaussian_inside(events: Sequence[Event], distance: float) -> Hidden | None:
    """Replace all Skellam noise by the Gaussian inside it, within a distance over the whole history.

    ``events`` holds each different event once, with its count. None where some event has no Gaussian inside.
    """
    skellam = [event for event in events if isinstance(event, SampledSkellam)]
    found = [hidden_gaussian(event, distance / len(skellam)) for event in skellam]
    hidden = [one for one in found if one is not None]
    if len(hidden) < len(found):
        return None
    gaussian = [event for event in events if isinstance(event, SampledGaussian)]
    return [*gaussian, *(event for event, _ in hidden)], math.fsum(lost for _, lost in hidden)


def hidden_history(events: Sequence[Event], delta: float, ceiling: float) -> Hidden | None:
    r"""Replace a history by a Gaussian one that is no better, at a small price in delta.

    If the Gaussian history is :math:`(\varepsilon, \delta')`-DP and the distance over the whole
    history is :math:`\tau`, the true one is :math:`(\varepsilon, \delta' + (1 + e^\varepsilon)
    \tau)`-DP. None where some event has no Gaussian inside.

    Parameters
    ----------
    events : Sequence[Event]
        Each different event once, with its count.
    delta : float
        What is left of delta; a thousandth of it is given up for the distance.
    ceiling : float
        Largest epsilon, proved otherwise, for which the delta returned with the history suffices.
    """
    if ceiling > _LARGEST_CEILING:
        return None
    factor = 1.0 + math.exp(ceiling)
    found = gaussian_inside(events, _SHARE * delta / factor)
    return None if found is None else (found[0], factor * found[1])
