"""Every figure of one model on one split, as a function of how often each record counts.

Two figures are called mAP on EMOTIC. Common code takes scikit-learn's, a sum over the curve without interpolation,

    ``AP = sum_n (R_n - R_(n-1)) P_n``;

the corpus' official code (``src/funcs.lua`` of its authors' repository) takes the mean, over the
eleven recalls r = 0, 0.1, ..., 1, of the highest precision at a recall of at least r,

    ``AP11 = (1 / 11) sum_r max {P_n : R_n >= r}``.

AP11 is mostly higher, so a figure means nothing without its definition. In both, records with equal
scores are one step here: a constant score has the label's prevalence.

Targets are 0/1 label matrices ``[N, K]``, scores are ``[N, K]``. ``weights``, float64 ``[N]``, say
how many times each record counts; once each by default.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import DataError
from carefl_secure.evaluation import decisions as rules

Floats = npt.NDArray[np.float64]

_POINTS = 10  # recalls 0, 1/10, ..., 10/10


class Ranking:
    """The records of each label in falling order of score, sorted once for many weightings.

    The weights of a bootstrap resample give the figures of that resample without sorting it again. ``pooled`` ranks
    all N K decisions in one list (micro averaging) instead of each label's own. DataError is raised where the shapes
    differ, or no record carries a label; NonFiniteError where a score is not finite.
    """

    def __init__(self, targets: npt.NDArray[Any], scores: npt.NDArray[Any], *, pooled: bool = False) -> None:
        positive, values = rules.checked(targets, scores)
        count, labels = positive.shape
        truth, score = positive.T, values.T
        record = np.broadcast_to(np.arange(count), (labels, count))
        if pooled:
            truth, score = truth.reshape(1, -1), score.reshape(1, -1)
            record = record.reshape(1, -1)
        order = np.argsort(-score, axis=1, kind="stable")
        ranked = np.take_along_axis(score, order, 1)
        self._record = np.take_along_axis(record, order, 1)
        self._truth = np.take_along_axis(truth, order, 1)
        self._count = count
        step = np.ones(ranked.shape, np.bool_)
        step[:, :-1] = ranked[:, 1:] < ranked[:, :-1]
        self._step = None if step.all() else step  # where no scores tie, each record is a step

    def _curve(self, weights: Floats | None) -> tuple[Floats, Floats]:
        """Return positives and precision, both ``[labels, N]``, at each place of the ranking."""
        weight = np.ones(self._count) if weights is None else weights
        ranked = weight[self._record]
        hits = np.cumsum(ranked * self._truth, axis=1)
        taken = np.cumsum(ranked, axis=1)
        return hits, hits / np.maximum(taken, 1e-300)

    def average_precisions(self, weights: Floats | None = None) -> Floats:
        """Return AP of each label, ``[labels]``; NaN for labels without a positive record."""
        hits, precision = self._curve(weights)
        if self._step is not None:
            # A tie is let in at once: its positives get the precision at its end.
            hits = np.maximum.accumulate(np.where(self._step, hits, 0.0), axis=1)
            precision = np.where(self._step, precision, 0.0)
        gained = np.diff(hits, axis=1, prepend=0.0)
        return _share((gained * precision).sum(1), hits[:, -1])

    def eleven_point(self, weights: Floats | None = None) -> Floats:
        """Return AP11 of each label, ``[labels]``; NaN for labels without a positive record."""
        hits, precision = self._curve(weights)
        if self._step is not None:
            precision = np.where(self._step, precision, 0.0)
        ahead = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = np.full(len(hits), np.nan)
        for label, (row, best) in enumerate(zip(hits, ahead, strict=True)):
            total = row[-1]
            if total > 0:
                # Recall >= i / 10 in whole numbers: 3 * 0.1 as a float lies above 3 / 10.
                first = np.searchsorted(_POINTS * row, np.arange(_POINTS + 1) * total)
                found[label] = best[first].mean()
        return found


def _share(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1e-300), np.nan)


_RANKING = ("mAP", "mAP_11point", "micro_AP", "sample_AP")
_CALIBRATION = ("ece", "brier")
NAMES = (*_RANKING, *rules.DECISIONS, *_CALIBRATION)
"""All figures: ``mAP`` is scikit-learn's definition, ``mAP_11point`` EMOTIC's official one."""
BOUNDS = {name: (0.0, 2.0 if name == "brier" else 1.0) for name in NAMES}
"""The least and the highest value of each figure."""


class Figures:
    """A :data:`carefl_secure.evaluation.bootstrap.Statistic` of a whole split or a part of it.

    ``targets`` is a 0/1 label matrix ``[N, K]``. ``scores``, ``[N, K]``, are log-odds where several labels may hold
    (``multi``), else log-probabilities. ``thresholds``, ``[K]``, come from other records than these; None decides for
    the highest score. A call returns the ``names``, of :data:`NAMES`; what is not asked for is not computed. DataError
    is raised where the shapes differ, no record carries a label, or a name is unknown; NonFiniteError where a score or
    threshold is not finite.
    """

    def __init__(
        self,
        targets: npt.NDArray[Any],
        scores: npt.NDArray[Any],
        *,
        multi: bool,
        thresholds: Floats | None = None,
        names: Collection[str] = NAMES,
    ) -> None:
        unknown = sorted(set(names) - set(NAMES))
        if unknown:
            raise DataError(f"there is no figure {unknown[0]!r}; choose of {', '.join(NAMES)}")
        positive, values = rules.checked(targets, scores)
        self.targets, self.scores = positive, values
        self.multi, self.thresholds = multi, thresholds
        self.names = tuple(name for name in NAMES if name in names)
        wanted = set(names)
        self.decisions = rules.Decisions(positive, rules.decide(values, thresholds))
        self.calibration = rules.Calibration(positive, rules.probabilities(values, multi=multi), multi=multi)
        self._ranking = Ranking(positive, values) if wanted & {"mAP", "mAP_11point"} else None
        self._pooled = Ranking(positive, values, pooled=True) if "micro_AP" in wanted else None
        each = Ranking(positive.T, values.T).average_precisions() if "sample_AP" in wanted else np.zeros(len(values))
        self._labelled = np.isfinite(each).astype(np.float64)
        self._samples = np.nan_to_num(each)

    def __call__(self, weights: Floats | None = None) -> dict[str, float]:
        """Return the named figures under ``weights`` [N]; NaN where the weighted records leave one undefined."""
        weight = np.ones(len(self.scores)) if weights is None else weights
        found: dict[str, float] = {}
        if "mAP" in self.names and self._ranking is not None:
            found["mAP"] = _mean(self._ranking.average_precisions(weight))
        if "mAP_11point" in self.names and self._ranking is not None:
            found["mAP_11point"] = _mean(self._ranking.eleven_point(weight))
        if self._pooled is not None:
            found["micro_AP"] = float(self._pooled.average_precisions(weight)[0])
        if "sample_AP" in self.names:
            labelled = float(weight @ self._labelled)
            found["sample_AP"] = float(weight @ self._samples / labelled) if labelled else np.nan
        if set(self.names) & set(rules.DECISIONS):
            found |= self.decisions.figures(weight)
        if set(self.names) & set(_CALIBRATION):
            found |= self.calibration.figures(weight)
        return {name: found[name] for name in self.names}

    def part(self, indices: npt.NDArray[np.int64], names: Collection[str] | None = None) -> Figures:
        """Return the figures of some records, under the same thresholds; one must carry a label."""
        wanted, rows, scores = self.names if names is None else names, self.targets[indices], self.scores[indices]
        return Figures(rows, scores, multi=self.multi, thresholds=self.thresholds, names=wanted)

    def per_label(self) -> dict[str, Floats]:
        """Return the figures of each label, ``[K]``, NaN for labels without a positive record."""
        ranking = Ranking(self.targets, self.scores)
        decided = dict(zip(("precision", "recall", "f1"), self.decisions.per_label(), strict=True))
        return {"AP": ranking.average_precisions(), "AP_11point": ranking.eleven_point(), **decided}


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def prevalence_scores(known: npt.NDArray[Any], count: int, *, multi: bool) -> tuple[Floats, Floats | None]:
    r"""Score every record by the label shares of other records: the baseline of every figure.

    Here mAP is the mean prevalence, and F1 that of giving every label (with one each, the most frequent).

    ``known`` is the 0/1 label matrix ``[M, K]`` of records that a model may learn from; ``count`` records are scored.
    Returned are scores ``[count, K]``, log-odds or log-probabilities with shares kept half a record away from 0 and 1,
    and thresholds ``[K]`` chosen on ``known``, None with one label each.
    """
    if known.ndim != 2 or not len(known):
        raise DataError("label shares need at least one record with known labels")
    edge = 0.5 / len(known)
    shares = np.clip(known.mean(0, dtype=np.float64), edge, 1 - edge)
    row = np.log(shares) - np.log1p(-shares) if multi else np.log(shares)
    thresholds = rules.choose_thresholds(known, np.tile(row, (len(known), 1))) if multi else None
    return np.tile(row, (count, 1)), thresholds
