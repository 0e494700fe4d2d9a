r"""The privacy loss distribution of one sampled Gaussian sum, discretised pessimistically; and an estimate by Opacus.

A unit that is drawn at k of its n clients with the binomial probability :math:`w_k` moves a sum from
:math:`Q = N(0, z^2)` to :math:`P = \sum_k w_k N(k, z^2)`. The loss :math:`\ell(x) = \ln P(x) / Q(x)` grows with x, so
each divergence :math:`\delta(\varepsilon)` is that of a half line that begins at :math:`\ell^{-1}(\varepsilon)`.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.special import log_ndtr, ndtr

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Vector: TypeAlias = "NDArray[np.float64]"

_REACH = 10.2  # standard deviations of noise; what lies beyond has a probability below e^-54


@dataclass(frozen=True, eq=False)
class Losses:
    """Discrete losses ``step * (first + i)`` of one sum, and the mass at infinity."""

    first: int
    probabilities: _Vector
    infinite: float


@functools.lru_cache(maxsize=16)
def gaussian_losses(rate: float, noise_multiplier: float, step: float, clients: int = 1) -> tuple[Losses, Losses]:
    """Return the losses of a unit that is removed and of one that is added; one object twice where they are equal.

    Equal to ``from_gaussian_mechanism`` and ``from_mixture_gaussian_mechanism`` of ``dp_accounting`` up to floating
    point, which a test checks, in a small part of their time.

    References
    ----------
    Doroshenko et al., "Connect the Dots", PoPETs 2022 (arXiv 2207.04380), algorithm 1.
    """
    pair = _Pair(rate, noise_multiplier, clients)
    low, high = -_REACH * noise_multiplier, clients + _REACH * noise_multiplier
    removed = _connected(pair, step, pair.loss(low), pair.loss(high), added=False)
    if rate == 1.0:
        return removed, removed
    return removed, _connected(pair, step, -pair.loss(high), -pair.loss(low), added=True)


class _Pair:
    """The two distributions of a sum, without and with the unit."""

    def __init__(self, rate: float, noise: float, clients: int) -> None:
        drawn = min(1.0, rate * (1.0 + 1e-12)) if clients > 1 else rate  # never below the chance of many draws
        weights = np.ones(1)
        for _ in range(clients):
            weights = np.convolve(weights, [1.0 - drawn, drawn])
        self.noise, self.weights, self.shifts = noise, weights[:, None], np.arange(clients + 1.0)[:, None]
        with np.errstate(divide="ignore"):
            self.logs = np.log(self.weights)

    def loss(self, x: float) -> float:
        """Return the log ratio of the two densities at x."""
        return float(np.logaddexp.reduce(self.logs + self._exponents(np.array([x])))[0])

    def _exponents(self, x: _Vector) -> _Vector:
        return np.asarray(self.shifts * (x - 0.5 * self.shifts) / self.noise**2, dtype=np.float64)

    def cutoffs(self, losses: _Vector) -> _Vector:
        """Return where the loss reaches each value; minus infinity for values that it always exceeds.

        Newton's method on the log of the sum over k > 0, which is convex with slopes between 1 and n over z squared;
        it begins above the root and comes down. One step is exact for one client.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = losses + np.log(-np.expm1(self.logs[0] - losses))
        never = ~np.isfinite(wanted)
        wanted[never] = 0.0
        last = len(self.shifts) - 1
        x = (wanted - self.logs[last]) * self.noise**2 / last + 0.5 * last
        for _ in range(100 if last > 1 else 0):
            parts = self.logs[1:] + self._exponents(x)[1:]
            whole = np.logaddexp.reduce(parts)
            slopes = np.sum(self.shifts[1:] * np.exp(parts - whole), axis=0) / self.noise**2
            change = (whole - wanted) / slopes
            x = x - change
            if float(np.abs(change).max()) <= 1e-12 * self.noise:
                break
        return np.where(never, -np.inf, x)

    def divergences(self, losses: _Vector, added: bool) -> _Vector:
        """Return delta at each loss: the mass above it less the other distribution's, times its exponential."""
        at = self.cutoffs(-losses if added else losses)
        if added:
            others = np.sum(self.weights * ndtr((at - self.shifts) / self.noise), axis=0)
            with np.errstate(divide="ignore"):
                return np.asarray(ndtr(at / self.noise) - np.exp(losses + np.log(others)), dtype=np.float64)
        mine = np.sum(self.weights * ndtr((self.shifts - at) / self.noise), axis=0)
        return np.asarray(mine - np.exp(losses + log_ndtr(-at / self.noise)), dtype=np.float64)


def _connected(pair: _Pair, step: float, low: float, high: float, *, added: bool) -> Losses:
    """Place masses on a grid so that every divergence between two points is at least the true one."""
    first, last = math.floor(low / step), math.ceil(high / step)
    at = step * np.arange(first, last + 1, dtype=np.float64)
    deltas = np.minimum.accumulate(np.clip(pair.divergences(at, added), 0.0, 1.0))
    changes = np.diff(deltas)
    masses = np.append(1.0 - deltas[0], changes / math.expm1(-step))
    masses[:-1] += changes / math.expm1(step)
    return Losses(first, np.maximum(masses, 0.0), float(deltas[-1]))


_PRV_ERROR = 0.01


def opacus_prv_epsilon(sample_rate: float, noise_multiplier: float, rounds: int, delta: float) -> float | None:
    """Estimate the epsilon of Poisson-sampled Gaussian sums with Opacus' PRV accountant.

    An upper estimate, 0.01 above the one proved by the loss distribution where both are accurate;
    None where the accountant gives up. Opacus' ``gdp`` accountant is not offered: it falls below
    the truth. Opacus is imported only here, as it brings torch with it.

    References
    ----------
    Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS 2021.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, rounds)]
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta=delta, eps_error=_PRV_ERROR))
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        return None  # numerical refusals of that accountant; the caller says that there is none
    finally:
        logging.disable(level)
