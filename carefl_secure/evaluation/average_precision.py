"""Average precision in both definitions in use, for whole splits and for resamples of them.

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

from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.evaluation.decisions import checked

Floats = npt.NDArray[np.float64]

_POINTS = 10  # recalls 0, 1/10, ..., 10/10


class Ranking:
    """The records of each label in falling order of score, sorted once for many weightings.

    The weights of a bootstrap resample give the figures of that resample without sorting it again. ``pooled`` ranks
    all N K decisions in one list (micro averaging) instead of each label's own. DataError is raised where the shapes
    differ, or no record carries a label; NonFiniteError where a score is not finite.
    """

    def __init__(self, targets: npt.NDArray[Any], scores: npt.NDArray[Any], *, pooled: bool = False) -> None:
        positive, values = checked(targets, scores)
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
