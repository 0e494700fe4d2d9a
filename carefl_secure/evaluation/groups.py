"""Figures of each group of people, the gap to the worst one, and how much of it is chance.

A gap between the best and the worst of several groups is never negative and grows with their number even where all are
alike. It is therefore compared with the gap that 95 of 100 shuffles of the group names over persons stay below.

Average precision rises with prevalence, so groups with denser labels score higher whatever the
model; each group's baseline is given, the mean prevalence of the labels it has.

Pictures are grouped by how light and how sharp they are, in terciles. Brightness is the mean luma (ITU-R BT.601), from
0 to 1. Sharpness is the variance of the Laplacian of the luma (Pech-Pacheco et al. 2000), on the picture scaled down
to at most 256 pixels a side, so that pictures of different size compare. Terciles are those of the scored records:
they show weaknesses within a corpus, not between corpora.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.bootstrap import Interval, Units, bootstrap
from carefl_secure.evaluation.figures import BOUNDS, Figures

Values = Sequence[str | None]
UNSTATED = "(not stated)"  # name of the group of records that do not have the attribute
_UNITS = 10  # fewer persons than this give no useful interval
_NAMES = ("mAP", "macro_f1", "uar")


@dataclass(frozen=True)
class Settings:
    """How an evaluation is made: bootstrap resamples for intervals of a level, and groups to compare."""

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0
    groups: tuple[str, ...] | None = None  # attributes to compare groups by; None takes all with 2 to 12 values
    minimum: int = 30  # records that a group needs, of ten persons; one with fewer is too small
    shuffles: int = 200  # of the group names, for the gap by chance


@dataclass(frozen=True)
class Group:
    """The records with one value of an attribute."""

    value: str
    records: int
    units: int  # independent persons or records among the records
    labels: int  # with a positive record here; the others enter no figure
    baseline: float  # mean prevalence of these labels
    figures: Mapping[str, float]  # empty where the group is too small; so are the intervals
    intervals: Mapping[str, Interval]
    small: bool


@dataclass(frozen=True)
class Comparison:
    """All groups of one attribute, by name; those too small with their counts alone."""

    attribute: str
    metric: str
    groups: tuple[Group, ...]
    worst: str | None
    best: str | None
    gap: float | None  # metric of the best group minus that of the worst; None with fewer than two
    gap_by_chance: float | None  # 95 of 100 shuffles of the group names stay below it
    minimum: int  # records of a group that counts


def compare(
    attribute: str, values: Values, figures: Figures, units: Units, settings: Settings, metric: str = "mAP"
) -> Comparison:
    """Score the groups of one attribute, with the gap in ``metric`` (mAP, macro_f1, uar), drawing ``units`` whole."""
    if len(values) != len(units) or len(units) != len(figures.scores):
        raise ConfigError(f"attribute {attribute!r} has {len(values)} values for {len(figures.scores)} records")
    if metric not in _NAMES:
        raise ConfigError(f"groups are compared by {', '.join(_NAMES)}, not {metric!r}")
    named = np.array([UNSTATED if value is None else value for value in values])
    groups, members = [], {}
    for value in sorted(set(named.tolist())):
        indices = np.flatnonzero(named == value)
        group = _group(value, indices, figures, units, settings)
        groups.append(group)
        if not group.small:
            members[value] = indices
    scored = {group.value: group.figures[metric] for group in groups if not group.small}
    if len(scored) < 2:
        return Comparison(attribute, metric, tuple(groups), None, None, None, None, settings.minimum)
    worst, best = min(scored, key=scored.__getitem__), max(scored, key=scored.__getitem__)
    return Comparison(
        attribute=attribute,
        metric=metric,
        groups=tuple(groups),
        worst=worst,
        best=best,
        gap=scored[best] - scored[worst],
        gap_by_chance=_by_chance(figures, units, members, metric, settings),
        minimum=settings.minimum,
    )


def _group(value: str, indices: npt.NDArray[np.int64], figures: Figures, units: Units, settings: Settings) -> Group:
    shares = figures.targets[indices].mean(0)
    labels = int((shares > 0).sum())
    _, own = np.unique(units[indices], return_inverse=True)
    persons = int(own.max()) + 1
    small = len(indices) < settings.minimum or persons < _UNITS or not labels
    measured: Mapping[str, float] = {}
    intervals: Mapping[str, Interval] = {}
    if not small:
        part = figures.part(indices, _NAMES)
        measured = part()
        intervals = bootstrap(
            part, own, replicates=settings.replicates, level=settings.level, seed=settings.seed, bounds=BOUNDS
        )
    return Group(
        value=value,
        records=len(indices),
        units=persons,
        labels=labels,
        baseline=float(shares[shares > 0].mean()) if labels else math.nan,
        figures=measured,
        intervals=intervals,
        small=small,
    )


def _by_chance(
    figures: Figures, units: Units, members: Mapping[str, npt.NDArray[np.int64]], metric: str, settings: Settings
) -> float | None:
    """Shuffle group names over whole persons where none is in two groups, else over records."""
    everyone = np.sort(np.concatenate(list(members.values())))
    _, own = np.unique(units[everyone], return_inverse=True)
    group = np.empty(len(units), np.int64)
    for number, indices in enumerate(members.values()):
        group[indices] = number
    group = group[everyone]
    pairs = len(set(zip(own.tolist(), group.tolist(), strict=True)))
    if pairs > int(own.max()) + 1:
        own = np.arange(len(everyone))
    of_unit = np.empty(int(own.max()) + 1, np.int64)
    of_unit[own] = group
    whole = figures.part(everyone, [metric])
    rng = np.random.default_rng(settings.seed)
    gaps = []
    for _ in range(settings.shuffles):
        drawn = rng.permutation(of_unit)[own]
        # As weights of 0 and 1 on one ranking: nothing is sorted again.
        scores = [whole((drawn == n).astype(np.float64))[metric] for n in range(len(members))]
        if all(math.isfinite(score) for score in scores):
            gaps.append(max(scores) - min(scores))
    return float(np.percentile(gaps, 95)) if gaps else None


Floats = npt.NDArray[np.float64]

_SIDE = 256
_TERCILES = {"brightness": ("1 dark", "2 middle", "3 bright"), "sharpness": ("1 blurred", "2 middle", "3 sharp")}


def _luma(image: Image.Image) -> Floats:
    grey = image.convert("L")
    if max(grey.size) > _SIDE:
        grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float64) / 255


def brightness(image: Image.Image) -> float:
    """Return the mean luma, from 0 to 1."""
    return float(_luma(image).mean())


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the luma; 0 for a picture below 3 x 3 pixels."""
    luma = _luma(image)
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * middle).var())


def slice_images(images: Iterable[Image.Image]) -> dict[str, tuple[tuple[str, ...], tuple[float, float]]]:
    """Sort pictures, one per record in order, into terciles of brightness and of sharpness; equal ones share one.

    For each of the two: the tercile of each record, and where the first and the second end, value included.
    """
    measured = [(brightness(image), sharpness(image)) for image in images]
    if not measured:
        raise DataError("there is no picture to sort by brightness; score at least one record")
    found: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {}
    for name, column in zip(_TERCILES, np.array(measured).T, strict=True):
        low, high = (float(edge) for edge in np.quantile(column, (1 / 3, 2 / 3)))
        place = (column > low).astype(np.int64) + (column > high)
        found[name] = tuple(_TERCILES[name][i] for i in place), (low, high)
    return found
