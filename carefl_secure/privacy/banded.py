"""Banded Toeplitz factorisations: their coefficients, and the error that they leave in running sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import BudgetExceededError
from carefl_secure.privacy.accounting.accountant import ROUGH_GRID, coarse_epsilon
from carefl_secure.privacy.accounting.calibration import calibrate_noise
from carefl_secure.privacy.accounting.events import SampledGaussian

_DENOMINATORS = (4, 8, 16, 32, 64)
_LOSS = 1.005  # of the error, accepted for a smaller denominator
_MOST_BANDS = 32
_CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)

Vector = NDArray[np.float64]


def _filtered(over: Sequence[float], signal: Vector) -> Vector:
    """Divide by the polynomial ``over``, along the first axis."""
    from scipy.signal import lfilter  # imported late, as most commands never need it

    return np.asarray(lfilter([1.0], over, signal, axis=0), np.float64)


def response(correlation: Sequence[float], rounds: int) -> Vector:
    r"""Return the first column of :math:`C^{-1}`, shape [rounds]: what fresh noise of one round adds to later ones."""
    return _filtered([m / correlation[0] for m in correlation], np.eye(rounds, 1)[:, 0])


def running_error(correlation: Sequence[float], rounds: int, momentum: float = 0.0) -> float:
    r"""Return the root mean square error of the running sums that an optimizer with momentum sees.

    With :math:`A` the prefix sums of :math:`v_t = \beta v_{t-1} + g_t`, it is :math:`\lVert A C^{-1} \rVert_F\, \lVert
    c \rVert_2 / \sqrt T`, in standard deviations of independent noise of the same noise multiplier.

    References
    ----------
    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", NeurIPS 2023 (arXiv 2306.08153).
    """
    sums = np.cumsum(_filtered([1.0, -momentum], response(correlation, rounds)))
    left = np.arange(rounds, 0, -1)
    return math.sqrt(float(left @ sums**2) / rounds) * norm(correlation)


def attended_error(correlation: Sequence[float], attended: NDArray[np.bool_], momentum: float = 0.0) -> float:
    """Return `running_error` where clients miss rounds: ``attended`` has shape [clients, rounds].

    A sum of s of n clients counts n / s times, as in the mean gradient; no round may have lost all of them.
    """
    clients, rounds = attended.shape
    sums = np.cumsum(_filtered([1.0, -momentum], np.eye(rounds)), axis=0)
    sums *= clients / attended.sum(axis=0)
    ratios, square = np.asarray(correlation, np.float64) / correlation[0], 0.0
    for rounds_of in attended:
        noise, before = np.zeros((rounds, rounds)), list[int]()
        for number in map(int, np.flatnonzero(rounds_of)):
            before = [earlier for earlier in before if number - earlier < len(ratios)]
            noise[number] = -sum(ratios[lag] * noise[earlier] for lag, earlier in enumerate(reversed(before), 1))
            noise[number, number] += 1.0
            before.append(number)
        square += float(np.sum((sums @ noise) ** 2))
    return math.sqrt(square / clients / rounds) * norm(correlation)


def norm(correlation: Sequence[float]) -> float:
    r"""Return :math:`\lVert c \rVert_2`, the sensitivity of a column of C."""
    return math.sqrt(math.fsum((m / correlation[0]) ** 2 for m in correlation))


@functools.lru_cache(maxsize=256)
def coefficients(bands: int, rounds: int, momentum: float = 0.0) -> tuple[int, ...]:
    r"""Choose whole numbers :math:`m` whose ratios :math:`c_k = m_k / m_0` make `running_error` small.

    The least error over real coefficients is found first; :math:`m_0` is the smallest of 4 to 64 that comes within
    0.5 % of it. No :math:`|m_k|` exceeds :math:`m_0`. Deterministic, shape [bands].
    """
    from scipy.optimize import minimize

    start = np.cumprod([(2 * k - 1) / (2 * k) for k in range(1, bands)])

    def error(rest: Sequence[float] | Vector) -> float:
        return running_error([1.0, *rest], rounds, momentum)

    best = minimize(error, start, method="L-BFGS-B", bounds=[(-1.0, 1.0)] * (bands - 1))
    found: tuple[int, ...] = ()
    for whole in _DENOMINATORS:
        found = (whole, *(round(float(c) * whole) for c in best.x))
        if running_error(found, rounds, momentum) <= _LOSS * float(best.fun):
            break
    return found


def predicted_error(bands: int, rounds: int, rate: float, epsilon: float, delta: float, momentum: float) -> float:
    """Return the error of running sums within a budget: noise multiplier times `running_error`.

    Infinity where no noise keeps the budget. The noise is that of the Gaussian, within 1 %.
    """

    def cycles(noise: float) -> SampledGaussian:
        return SampledGaussian(min(1.0, bands * rate), noise, math.ceil(rounds / bands))

    try:
        noise = calibrate_noise(cycles, epsilon, delta, price=lambda e, d: coarse_epsilon(e, d, ROUGH_GRID))
    except BudgetExceededError:
        return math.inf
    chosen = (1,) if bands == 1 else coefficients(bands, rounds, momentum)
    return noise * running_error(chosen, rounds, momentum)


def most_bands(rounds: int, rate: float) -> int:
    """Return how many bands fit: each record has one round in so many, at so many times the rate."""
    return min(rounds, math.floor((1.0 + 1e-12) / rate), _MOST_BANDS)


@functools.lru_cache(maxsize=64)
def choose_bands(
    rounds: int, rate: float, epsilon: float, delta: float, momentum: float, bands: int | None = None
) -> tuple[int, float]:
    """Return the number of bands of least predicted error, and that error over the one of independent noise.

    At least 2, among those that fit; ``bands`` fixes it.
    """
    most = most_bands(rounds, rate)
    tried = (bands,) if bands else sorted({*(b for b in _CANDIDATES if b <= most), most})
    errors = {b: predicted_error(b, rounds, rate, epsilon, delta, momentum) for b in tried}
    best = min(errors, key=lambda b: errors[b])
    return best, errors[best] / predicted_error(1, rounds, rate, epsilon, delta, momentum)
