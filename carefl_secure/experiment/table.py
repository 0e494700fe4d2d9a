r"""From finished cells to a table: means over seeds, and two paired tests between variants.

**Over seeds** (training anew, another draw of the data): for a figure with the values :math:`x_1 \dots x_S` over S
seeds, the t interval :math:`\bar x \pm t_{S-1} s / \sqrt S`. Two variants are compared by the differences :math:`d_s`
of the same seed: paired t interval and two-sided p value, adjusted over all comparisons of the table by Holm's rule.

**Over records** (other test persons, the same trained models): whole persons of each seed's test
split are drawn with replacement, both variants are scored on the same draw, and the mean difference
over the seeds gets a basic bootstrap interval.

Guarantees
----------
With few seeds the t interval rests on normal differences and is wide; the bootstrap holds training
fixed, so it is too narrow for a claim about the method. A difference is called *clear* only where
the adjusted p value is below one minus the level and the bootstrap interval leaves 0 out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

import carefl_secure
from carefl_secure.config.experiment import KINDS, Experiment, Variant
from carefl_secure.evaluation.bootstrap import basic_interval, resamples
from carefl_secure.experiment.run import Finished, scores_file
from carefl_secure.experiment.scores import Scores
from carefl_secure.rounding import finite

Floats = npt.NDArray[np.float64]

_TESTED = "mAP"  # the figure that decides


def mean_interval(values: Sequence[float], level: float) -> dict[str, float | None]:
    """Return mean, t interval and two-sided p value of a mean of 0; None where undefined."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return {"mean": mean, "low": None, "high": None, "p": None}
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * error
    p = (1.0 if mean == 0.0 else 0.0) if error == 0.0 else float(2 * stats.t.sf(abs(mean) / error, len(x) - 1))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "p": p}


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for their number (Holm 1979): the chance of one false claim stays bounded."""
    adjusted, worst = {}, 0.0
    for place, name in enumerate(sorted(values, key=lambda key: values[key])):
        worst = max(worst, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = worst
    return adjusted


def results(experiment: Experiment, finished: Sequence[Finished], folder: Path) -> dict[str, Any]:
    """Return the whole table as JSON values; ``folder`` holds the cells' folders."""
    good = [one for one in finished if one.error is None]
    rows = [_row(experiment, variant, good) for variant in experiment.variants]
    comparisons = _comparisons(experiment, good, folder)
    return {
        "name": experiment.name,
        "question": experiment.question,
        "version": carefl_secure.__version__,
        "seeds": list(experiment.seeds),
        "level": experiment.level,
        "replicates": experiment.replicates,
        "rows": rows,
        "comparisons": comparisons,
        "failures": [
            {"cell": f"{one.variant}-seed{one.seed}", "error": one.error} for one in finished if one.error is not None
        ],
        "seconds": sum(one.seconds for one in good),
    }


def _row(experiment: Experiment, variant: Variant, good: Sequence[Finished]) -> dict[str, Any]:
    mine = [one for one in good if one.variant == variant.name]
    names = [n for n in (mine[0].figures if mine else {}) if all(n in m.figures for m in mine)]
    spent = [one.epsilon for one in mine if one.epsilon is not None]
    return {
        "variant": variant.name,
        "kind": variant.kind,
        "made": KINDS[variant.kind],
        "set": variant.set,
        "scored_under": variant.score,
        "cells": len(mine),
        # The most that any cell spent; None where one of them protects nothing.
        "epsilon": max(spent) if mine and len(spent) == len(mine) else None,
        "figures": {name: mean_interval([one.figures[name] for one in mine], experiment.level) for name in names},
        "seconds": float(np.mean([one.seconds for one in mine])) if mine else None,
    }


def _comparisons(experiment: Experiment, good: Sequence[Finished], folder: Path) -> list[dict[str, Any]]:
    held: dict[tuple[str, int], _Resampled] = {}

    def resampled(name: str, seed: int) -> _Resampled:
        if (name, seed) not in held:
            scores = Scores.read(scores_file(folder, name, seed))
            held[name, seed] = _Resampled(scores, experiment.replicates, seed)
        return held[name, seed]

    found = []
    for variant in experiment.variants:
        other = experiment.compared_with(variant)
        mine = {one.seed: one for one in good if one.variant == variant.name}
        theirs = {one.seed: one for one in good if one.variant == other}
        seeds = [seed for seed in experiment.seeds if seed in mine and seed in theirs]
        if other == variant.name or not seeds:
            continue
        row: dict[str, Any] = {"variant": variant.name, "against": other, "seeds": len(seeds)}
        first = mine[seeds[0]].figures
        row["over_seeds"] = {
            name: mean_interval([mine[s].figures[name] - theirs[s].figures[name] for s in seeds], experiment.level)
            for name in first
            if all(name in mine[s].figures and name in theirs[s].figures for s in seeds)
        }
        pairs = [(resampled(variant.name, s), resampled(other, s)) for s in seeds]
        row["over_records"] = _bootstrap(pairs, experiment.level)
        found.append(row)
    tested = {
        str(i): row["over_seeds"][_TESTED]["p"]
        for i, row in enumerate(found)
        if row["over_seeds"].get(_TESTED, {}).get("p") is not None
    }
    adjusted = holm(tested)
    for i, row in enumerate(found):
        row["p_holm"] = adjusted.get(str(i))
        between = row["over_records"].get(_TESTED, {"low": None})
        apart = between["low"] is not None and (between["low"] > 0 or between["high"] < 0)
        row["clear"] = bool(apart and row["p_holm"] is not None and row["p_holm"] < 1 - experiment.level)
    return found


class _Resampled:
    """Figures of one cell on all records, and on each resample of them."""

    def __init__(self, scores: Scores, replicates: int, seed: int) -> None:
        statistic = scores.statistic()
        self.scores, self.whole = scores, statistic(None)
        # The draws follow from units and seed alone, so both cells of a pair meet the same ones.
        self.drawn = [statistic(weights) for weights in resamples(scores.units, replicates, seed)]


def _bootstrap(pairs: Sequence[tuple[_Resampled, _Resampled]], level: float) -> dict[str, dict[str, float | None]]:
    """Return the basic interval of the mean difference; empty where the records differ."""
    for one, other in pairs:
        same = np.array_equal(one.scores.targets, other.scores.targets)
        if not same or not np.array_equal(one.scores.units, other.scores.units):
            return {}
    found: dict[str, dict[str, float | None]] = {}
    for name in pairs[0][0].whole:
        if not all(name in one.whole and name in other.whole for one, other in pairs):
            continue
        whole = float(np.mean([a.whole[name] - b.whole[name] for a, b in pairs]))
        drawn: Floats = np.mean(
            [[x[name] - y[name] for x, y in zip(a.drawn, b.drawn, strict=True)] for a, b in pairs], axis=0
        )
        between = basic_interval(whole, drawn, level)
        found[name] = {"mean": whole, "low": finite(between.low), "high": finite(between.high)}
    return found
