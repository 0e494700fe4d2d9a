"""Banded Toeplitz factorisations: their coefficients, and the error that they leave in running sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import BudgetExceededError
from carefl_secure.noise import KeyStream
from carefl_secure.privacy.accounting.accountant import ROUGH_GRID, coarse_epsilon
from carefl_secure.privacy.accounting.calibration import calibrate_noise
from carefl_secure.privacy.accounting.events import SampledGaussian
from carefl_secure.privacy.sampling import poisson_sample

_DENOMINATORS = (4, 5, 6, 7, 8, 12, 16, 32, 64)
_LOSS = 1.005  # of the error, accepted for a smaller denominator
_MOST_BANDS = 32
_DRAWN = 4096  # rounds of drawn attendances, over which errors are averaged
_CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


def _filtered(over: Sequence[float], signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide by the polynomial ``over``, along the first axis."""
    from scipy.signal import lfilter  # imported late, as most commands never need it

    return np.asarray(lfilter([1.0], over, signal, axis=0), np.float64)


def response(correlation: Sequence[float], rounds: int) -> NDArray[np.float64]:
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


def norm(correlation: Sequence[float]) -> float:
    r"""Return :math:`\lVert c \rVert_2`, the sensitivity of a column of C."""
    return math.sqrt(math.fsum((m / correlation[0]) ** 2 for m in correlation))


@functools.lru_cache(maxsize=256)
def coefficients(bands: int, rounds: int, momentum: float = 0.0) -> tuple[int, ...]:
    r"""Choose whole numbers :math:`m` whose ratios :math:`c_k = m_k / m_0` make `running_error` small.

    The least error over real coefficients is found first; :math:`m_0` is the smallest of 4 to 64 that comes within
    0.5 % of it. All others are below :math:`m_0`, so that rounds that a client missed do not make its noise grow.
    """
    from scipy.optimize import minimize

    start = np.cumprod([(2 * k - 1) / (2 * k) for k in range(1, bands)])

    def error(rest: Sequence[float] | NDArray[np.float64]) -> float:
        return running_error([1.0, *rest], rounds, momentum)

    best = minimize(error, start, method="L-BFGS-B", bounds=[(-0.9, 0.9)] * (bands - 1))
    found: tuple[int, ...] = ()
    for whole in _DENOMINATORS:
        found = (whole, *(min(round(float(c) * whole), whole - 1) for c in best.x))
        if running_error(found, rounds, momentum) <= _LOSS * float(best.fun):
            break
    return found


def attended_error(correlation: Sequence[float], rounds: int, momentum: float, present: float) -> float:
    """Return `running_error` where each client is in a round with probability ``present``, by drawn attendances.

    Without the factor ``present ** -0.5``, which independent noise gets as well; lags are as in `BandedState`.
    """
    if present >= 1.0:
        return running_error(correlation, rounds, momentum)
    sums = np.cumsum(_filtered([1.0, -momentum], np.eye(rounds)), axis=0)
    ratios, square = np.asarray(correlation, np.float64) / correlation[0], 0.0
    stream, draws = KeyStream(bytes(32)), 16 + _DRAWN // rounds
    for _ in range(draws):
        noise, kept = np.zeros((rounds, rounds)), list[int]()
        for number in map(int, poisson_sample(rounds, present, stream)):
            kept = [earlier for earlier in kept if number - earlier < len(ratios)]
            noise[number] = -ratios[len(kept) : 0 : -1] @ noise[kept]
            noise[number, number] = 1.0
            kept.append(number)
        square += float(np.sum((sums @ noise) ** 2))
    return math.sqrt(square / draws / rounds / present) * norm(correlation)


def predicted_error(
    bands: int, rounds: int, rate: float, epsilon: float, delta: float, momentum: float, present: float = 1.0
) -> float:
    """Return the error of running sums within a budget: noise multiplier times `attended_error`.

    Infinity where no noise keeps the budget. The noise is that of the Gaussian, within 1 %.
    """
    cycles = SampledGaussian(min(1.0, bands * rate), 1.0, math.ceil(rounds / bands))
    price = functools.partial(coarse_epsilon, grid=ROUGH_GRID)
    try:
        noise = calibrate_noise(lambda z: replace(cycles, noise_multiplier=z), epsilon, delta, price=price)
    except BudgetExceededError:
        return math.inf
    chosen = (1,) if bands == 1 else coefficients(bands, rounds, momentum)
    return noise * attended_error(chosen, rounds, momentum, present)


@functools.lru_cache(maxsize=64)
def choose_bands(
    rounds: int, rate: float, epsilon: float, delta: float, momentum: float, bands: int | None = None,
    present: float = 1.0,
) -> tuple[int, float]:  # fmt: skip
    """Return the number of bands of least predicted error, and that error over the one of independent noise.

    At least 2, among those that fit; ``bands`` fixes it. ``present``: as for `attended_error`.
    """
    most = min(rounds, math.floor((1.0 + 1e-12) / rate), _MOST_BANDS)
    tried = (bands,) if bands else sorted({*(b for b in _CANDIDATES if b <= most), most})
    errors = {b: predicted_error(b, rounds, rate, epsilon, delta, momentum, present) for b in (1, *tried)}
    best = min(tried, key=lambda b: errors[b])
    return best, errors[best] / errors[1]
