"""What rounding, sampling and wrapping do at most: the bounds that an encoding is planned by."""

from __future__ import annotations

import math
from collections.abc import Callable

DITHER_FAILURE = 1e-12
"""Probability per round that the rounding changes more than the stated sensitivity (beta)."""

_BATCH_TAIL = 2.0**-40


def rounded_sensitivity(scaled_norm: float, padded: int, failure: float = DITHER_FAILURE) -> tuple[float, float]:
    """Bound ``(l1, l2)`` of what one record changes after rounding, in integer units.

    With ``c = scaled_norm`` and ``d = padded``: ``l2 = min(sqrt(c^2 + d/4 + sqrt(2 ln(1/beta)) (c +
    sqrt(d)/2)), c + sqrt(d))`` and ``l1 = min(l2^2, sqrt(d) l2)``. The second bound on l2 holds
    always, the first except with probability ``beta``; ``encode`` has the argument.
    """
    root = math.sqrt(padded)
    tail = math.sqrt(2 * math.log(1 / failure)) * (scaled_norm + root / 2)
    l2 = min(math.sqrt(scaled_norm**2 + padded / 4 + tail), scaled_norm + root)
    return min(l2 * l2, root * l2), l2


def batch_bound(expected_batch: float) -> float:
    """Return a batch size that a Poisson sample exceeds with probability below ``2**-40``.

    Smallest ``N`` with ``exp(N - m - N ln(N / m)) <= 2**-40`` (Chernoff; it holds for every sum of
    independent choices of mean ``m``).
    """
    mean = expected_batch
    return smallest(lambda n: n - mean - n * math.log(n / mean) <= math.log(_BATCH_TAIL), mean, 100 + 20 * mean)


def overflow_bound(bits: int, proxy: float, skellam_variance: float) -> float:
    """Bound the probability that one coordinate of the sum leaves the signed range.

    The coordinate is a sub-Gaussian part of variance proxy ``a`` (rotated signal and rounding)
    and a Skellam part of variance ``m``: by Chernoff, at most ``2 exp(t^2 a / 2 + m (cosh t - 1)
    - t R)`` for ``R = 2**(bits-1) - 1`` and every ``t > 0``; the best ``t`` solves ``a t + m sinh
    t = R``.
    """
    reach = 2.0 ** (bits - 1) - 1
    if proxy + skellam_variance <= 0:
        return 0.0

    def slope(t: float) -> float:
        return proxy * t + skellam_variance * math.sinh(t)

    best = smallest(lambda t: slope(t) >= reach, 0.0, min(50.0, reach / (proxy + skellam_variance)))
    growth = skellam_variance * 2 * math.sinh(best / 2) ** 2  # cosh t - 1 without cancellation
    return min(1.0, 2 * math.exp(min(0.0, best * best * proxy / 2 + growth - best * reach)))


def smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the smallest argument from which on ``holds`` is true."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
