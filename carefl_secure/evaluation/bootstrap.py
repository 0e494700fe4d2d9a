"""Bootstrap intervals: how far a figure would differ on other records, or on other persons.

Basic intervals: with the figure t of all records and the quantiles q of resampled figures, an interval reaches from
``2 t - q(high)`` to ``2 t - q(low)`` (Davison and Hinkley 1997, section 5.2.1). Average precision from few positives
is biased upwards, and in resamples once more. The mean over labels keeps that bias while its spread narrows, so
percentile intervals, from ``q(low)`` to ``q(high)``, lie too high: of 95 % intervals for macro AP of 26 labels they
held the truth in 58 (135 records), 68 (400) and 82 (1,200) of 100 simulated cases, basic ones in 91, 90 and 95.

Where several records show one person they are not independent draws, so whole persons are drawn,
with all their records: drawing single records gives intervals that are far too narrow.

Guarantees
----------
None for small numbers. The stated level is reached in the limit of many independent units; below some 20 units, or for
figures near 0 or 1, intervals are too narrow. For AP of one label with some 18 positives, 82 of 100 held the truth.
They describe the spread over records of this corpus at one trained model: neither training anew nor another corpus is
in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]
Statistic = Callable[[Floats | None], Mapping[str, float]]
"""Figures of a split whose records count so many times; once each for None."""
_UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Interval:
    """Where a figure would lie on other records."""

    low: float  # NaN where more than half of the resamples leave the figure undefined; so is high
    high: float
    undefined: int = 0  # resamples left out, such as those without any positive record


def units_of(subjects: Sequence[str | None]) -> Units:
    """Return a number for each record, from 0 without gaps: one for all records of a subject, or its own."""
    numbers: dict[tuple[str, int], int] = {}
    found = [
        numbers.setdefault(("", i) if name is None else (f"={name}", -1), len(numbers))
        for i, name in enumerate(subjects)
    ]
    return np.array(found, np.int64)


def resamples(units: Units, replicates: int, seed: int) -> Iterator[Floats]:
    """Yield how often each record counts when as many units (`units_of`), two or more, are drawn with replacement."""
    count = int(units.max()) + 1 if len(units) else 0
    if replicates < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, not {replicates}")
    if count < 2:
        raise DataError(f"{count} independent records or persons have no interval; score more")
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)
        yield drawn[units].astype(np.float64)


def bootstrap(
    statistic: Statistic,
    units: Units,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Interval]:
    """Return a basic interval of each figure of ``statistic``, with ``level`` of the resamples, within ``bounds``."""
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval lies between 0 and 1, not at {level}")
    drawn: dict[str, list[float]] = {}
    for weights in resamples(units, replicates, seed):
        for name, value in statistic(weights).items():
            drawn.setdefault(name, []).append(value)
    return {
        name: basic_interval(whole, np.array(drawn[name]), level, (bounds or {}).get(name, _UNBOUNDED))
        for name, whole in statistic(None).items()
    }


def basic_interval(whole: float, drawn: Floats, level: float, bounds: tuple[float, float] = _UNBOUNDED) -> Interval:
    """Return the basic interval of a figure, within its bounds, from its values in the resamples."""
    known = drawn[np.isfinite(drawn)]
    low = high = math.nan
    if 2 * len(known) >= len(drawn) and math.isfinite(whole):
        low, high = np.clip(2 * whole - np.percentile(known, (50 * (1 + level), 50 * (1 - level))), *bounds)
    return Interval(float(low), float(high), len(drawn) - len(known))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return ``first - second`` on the same records, so that a resample pairs the two: a narrower interval."""

    def paired(weights: Floats | None) -> dict[str, float]:
        one, other = first(weights), second(weights)
        return {name: value - other[name] for name, value in one.items() if name in other}

    return paired
