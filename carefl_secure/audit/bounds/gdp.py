"""Conversions between epsilon and mu for Gaussian differential privacy (mu-GDP)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri


def gdp_delta(mu: float, epsilon: float) -> float:
    r"""Return delta of a mu-GDP mechanism at ``epsilon``.

    .. math::
        \delta = \Phi(-\varepsilon/\mu + \mu/2) - e^{\varepsilon}\,\Phi(-\varepsilon/\mu - \mu/2)

    References
    ----------
    Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022, corollary 2.13.
    """
    if mu <= 0:
        return 0.0
    upper = float(ndtr(-epsilon / mu + mu / 2))
    lower = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return max(0.0, upper - lower)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon of a mu-GDP mechanism at ``delta``; 0 where delta covers it all."""
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gdp_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda e: gdp_delta(mu, e) - delta, 0.0, high, xtol=1e-9))


def gdp_inverse(mu: float, mass: npt.NDArray[np.float64] | float) -> float:
    """Return the least mass of right guesses that mu-GDP leaves for a mass of wrong ones."""
    return float(ndtr(ndtri(mass) - mu))
