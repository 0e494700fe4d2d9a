r"""Composition of privacy loss distributions with an error bound that covers floating point.

An FFT rounds relative to the largest probability. After many compositions that error exceeds a small delta. Here each
distribution is tilted first, :math:`\tilde p(x) \propto p(x) e^{\lambda x}`, so that the losses that decide delta are
the likely ones and rounding is relative to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from carefl_secure.privacy.accounting.events import SampledGaussian
from carefl_secure.privacy.accounting.gaussian_losses import Losses, gaussian_losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Vector: TypeAlias = "NDArray[np.float64]"

_UNIT = 2.0**-53
_TAIL = 40.0  # exponent of the tilted mass that the FFT window may cut off
_LOG_TILT = (math.log(1e-3), math.log(1e7))
_SMALL_TILT = 0.1  # for deltas of every size at once
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_LARGEST_EXPONENT = 600.0
_LARGEST_STEP = 1.0
_REACH = 12.0  # standard deviations of noise within which losses are discretised
_MOST_NOISE = 1e8  # more is priced as this, which is an upper bound


def usable_grid(events: Sequence[SampledGaussian], grid: float, clients: int = 1) -> float:
    """Choose the step of the losses: at most ``grid``, and finer than one sum's usual loss.

    A step above the loss of one sum overstates strong budgets over many rounds; losses beyond 10 get a coarser step,
    in proportion. The result is ``grid`` times a power of two, so that growing histories meet the same grids.
    """
    spreads = [
        math.log1p(min(1.0, clients * e.sample_rate) ** 2 * math.expm1(min(1.0 / e.noise_multiplier**2, 700.0)))
        for e in events
    ]
    total = math.fsum(e.count * s for e, s in zip(events, spreads, strict=True))
    each = math.fsum(e.count * math.sqrt(s) for e, s in zip(events, spreads, strict=True))
    largest = max(0.5 * (clients / e.noise_multiplier) ** 2 for e in events)
    wanted = max(min(grid, 0.5 * total / each), grid * max(largest, total) / 10.0, grid / 2**20)
    return grid * 2.0 ** math.floor(math.log2(wanted / grid))


def composed_epsilon(events: Sequence[SampledGaussian], delta: float, grid: float, clients: int = 1) -> float:
    r"""Return the epsilon of a Gaussian history, add or remove one, floating point included.

    With :math:`q = e^{K(\lambda) - \lambda x}\,\tilde q(x)` the composed distribution, :math:`K`
    its cumulant generating function and :math:`E` the rounding of the FFT in total variation:

    .. math::
        \delta(\varepsilon) \le \sum_{x > \varepsilon} (1 - e^{\varepsilon - x})\, q(x)
        + e^{K(\lambda) - \lambda\varepsilon} E + \text{tails}

    Infinity where losses that have no bound are likelier than ``delta``, or so large that their exponentials overflow.
    ``events`` holds each different event once, at least one; ``grid`` is the largest step of the discrete losses. A
    unit held by n ``clients`` shifts a sum by k norms with the binomial probability of k draws of n.

    Guarantees
    ----------
    Not below the epsilon of the discretised (pessimistic) distributions. The window of the FFT
    folds mass upwards or charges it to delta. :math:`E` bounds each Fourier coefficient of an FFT
    of N nonnegative numbers that sum to one by ``6 u log2 N``, and its power T by T times that.
    """
    events = [dataclasses.replace(e, noise_multiplier=min(e.noise_multiplier, _MOST_NOISE)) for e in events]
    shift = min(max(clients / e.noise_multiplier for e in events), 1e6)
    step = usable_grid(events, grid, clients) if shift < 1e6 else math.inf
    if 0.5 * shift**2 + _REACH * shift > _LARGEST_EXPONENT or step > _LARGEST_STEP:
        return math.inf
    removed, added = _compositions(events, step, clients)
    found = removed.epsilon(delta)
    return found if added is removed else max(found, added.epsilon(delta))


def composed_deltas(events: Sequence[SampledGaussian], grid: float) -> tuple[float, _Vector]:
    """Return a step, and an upper bound of delta at the epsilons 0, step, 2 step and so on; see `composed_epsilon`."""
    step = usable_grid(events, grid)
    found = [one.deltas() for one in _compositions(events, step, 1)]
    size = max(map(len, found))
    return step, np.max([np.pad(one, (0, size - len(one)), "edge") for one in found], axis=0)


def _compositions(events: Sequence[SampledGaussian], step: float, clients: int) -> tuple[_Composition, _Composition]:
    """Return both directions, a unit removed and one added; one object twice where they are equal."""
    pairs = [gaussian_losses(e.sample_rate, e.noise_multiplier, step, clients) for e in events]
    counts = [event.count for event in events]
    removed = _Composition(step, [pair[0] for pair in pairs], counts)
    same = all(pair[0] is pair[1] for pair in pairs)
    return removed, removed if same else _Composition(step, [pair[1] for pair in pairs], counts)


class _Composition:
    """One direction (record added, or removed) of a whole history."""

    def __init__(self, step: float, parts: Sequence[Losses], counts: Sequence[int]) -> None:
        self._step = step
        self._parts = parts
        self._counts = counts
        self._values = [step * np.arange(p.first, p.first + p.probabilities.size, dtype=np.float64) for p in parts]
        with np.errstate(divide="ignore"):
            self._logs = [np.log(p.probabilities) for p in parts]

        self._infinite = -math.expm1(
            math.fsum(n * math.log1p(-p.infinite) for n, p in zip(counts, parts, strict=True))
        )

    def deltas(self) -> _Vector:
        """Bound delta at the losses 0, step, 2 step and so on; 1 where nothing is proved."""
        found = self._tails(_SMALL_TILT)
        if found is None:
            return np.ones(1)
        losses, above, below, charged = found
        before = np.ones(round(float(losses[0]) / self._step))
        return np.append(before, np.minimum(1.0, above - below + charged + self._infinite))

    def epsilon(self, delta: float) -> float:
        """Return the least epsilon that is proved at delta."""
        left = delta - self._infinite
        if not left > 0.0:
            return math.inf
        found = self._tails(self._best_tilt(left))
        if found is None:
            return math.inf
        losses, above, below, charged = found
        enough = above - below + charged <= left
        if losses[0] <= 0.0 and bool(enough[np.searchsorted(losses, 0.0)]):
            return 0.0
        place = int(np.argmax(enough)) if bool(enough.any()) else losses.size - 1
        if place == 0 or not enough[place]:
            return max(0.0, float(losses[place]))
        # between two losses the masses above are constant, and the charge at most the lower one's
        lower, upper = float(losses[place - 1]), float(losses[place])
        excess = above[place - 1] + charged[place - 1] - left
        if excess <= 0.0 or below[place - 1] == 0.0:
            return max(0.0, upper)
        within = lower + math.log(excess / below[place - 1])
        return max(0.0, min(upper, within))

    def _tails(self, tilt: float) -> tuple[_Vector, _Vector, _Vector, _Vector] | None:
        """Return the losses from 0 on, both distributions' masses above each, and what is charged for rounding.

        None where exponentials of the losses would overflow.
        """
        centre = self._cumulant(tilt)
        start, size = self._window(tilt, centre)
        tilted, rounding = self._tilted(tilt, start, size)
        losses = self._step * np.arange(start, start + size, dtype=np.float64)
        used = losses > -self._step
        losses, tilted = losses[used], tilted[used]
        if not losses.size or losses[-1] - losses[0] > 2.0 * _LARGEST_EXPONENT:
            return None
        weight = np.exp(np.minimum(centre - tilt * losses, _LARGEST_EXPONENT))
        growth = np.exp(losses - 0.5 * (losses[0] + losses[-1]))
        # masses above each loss, and the same divided by their growth, added from the top
        above = np.append(np.cumsum((weight * tilted)[::-1])[::-1], 0.0)[1:]
        scaled = np.append(np.cumsum((weight * tilted / growth)[::-1])[::-1], 0.0)[1:]
        beyond = math.exp(min(centre - tilt * float(losses[-1]) - _TAIL, 0.0))
        charged = beyond + weight * rounding + above * (size * 2.0 * _UNIT)
        return losses, above, scaled * growth, charged

    def _cumulant(self, tilt: float) -> float:
        return math.fsum(
            n * _log_sum(logs + tilt * values)
            for n, logs, values in zip(self._counts, self._logs, self._values, strict=True)
        )

    def _best_tilt(self, delta: float) -> float:
        """Return the tilt of the best Chernoff bound, by golden sections; any positive one is valid."""
        low, high = _LOG_TILT

        def bound(x: float) -> float:
            return (self._cumulant(math.exp(x)) - math.log(delta)) * math.exp(-x)

        one, other = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_one, at_other = bound(one), bound(other)
        while high - low > 0.02:
            if at_one < at_other:
                high, other, at_other = other, one, at_one
                one = high - _GOLDEN * (high - low)
                at_one = bound(one)
            else:
                low, one, at_one = one, other, at_other
                other = low + _GOLDEN * (high - low)
                at_other = bound(other)
        return math.exp(0.5 * (low + high))

    def _window(self, tilt: float, centre: float) -> tuple[int, int]:
        """Return first place and length of a window that holds all tilted mass but ``e^-40``."""
        small = 1e-3 * tilt
        curvature = self._cumulant(tilt + small) - 2.0 * centre + self._cumulant(tilt - small)
        natural = math.sqrt(2.0 * _TAIL * small**2 / max(curvature, 1e-30 * small**2))
        steps = [natural * factor for factor in (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)]
        high = min((self._cumulant(tilt + s) - centre + _TAIL) / s for s in steps)
        low = max(-(self._cumulant(tilt - s) - centre + _TAIL) / s for s in steps)
        places = [(n * p.first, n * (p.first + p.probabilities.size - 1))
                  for n, p in zip(self._counts, self._parts, strict=True)]  # fmt: skip
        first = max(math.floor(low / self._step), sum(place[0] for place in places))
        last = min(math.ceil(high / self._step), sum(place[1] for place in places))
        least = max(last, first + 1) - first + 1  # and an FFT is fast for a power of two, or 3, 5, 9 or 15 times one
        return first, min(m << max(0, math.ceil(math.log2(least / m))) for m in (1, 3, 5, 9, 15))

    def _tilted(self, tilt: float, start: int, size: int) -> tuple[_Vector, float]:
        """Compose the tilted distributions; return them and a bound on the rounding."""
        whole, relative = np.ones(size // 2 + 1, dtype=np.complex128), np.zeros(size // 2 + 1)
        parts = zip(self._counts, self._parts, self._logs, self._values, strict=True)
        for n, part, logs, values in parts:
            exponents = logs + tilt * values
            masses = np.exp(exponents - _log_sum(exponents))
            places = np.arange(part.first, part.first + masses.size) % size
            coefficients = np.fft.rfft(np.bincount(places, masses, size))
            whole *= coefficients**n
            relative += n / np.maximum(np.abs(coefficients), 1e-200)
        composed = np.roll(np.fft.irfft(whole, size), -(start % size))
        norm = math.sqrt(2.0) * float(np.linalg.norm(np.abs(whole) * (1.0 + relative)))
        return np.maximum(composed, 0.0), 6.0 * _UNIT * math.log2(size + 1.0) * norm


def _log_sum(exponents: _Vector) -> float:
    largest = float(exponents.max())
    return largest + math.log(float(np.exp(exponents - largest).sum()))
