"""From scores to hard decisions: thresholds, and precision, recall, F1 and accuracy in all the usual averages.

Macro averages take each label alike, over labels with at least one positive record; micro averages take each decision
alike; sample averages take each record alike, over records with at least one label. On 26 uneven labels the three
differ widely, hence the average is part of every name. Precision where nothing was decided is 0, as in scikit-learn.

Targets are 0/1 label matrices ``[N, K]``, scores and decisions are ``[N, K]``.

Whether a score of 70 % is right 70 % of the time: where several labels may hold, every decision of a record and a
label counts, with probability p and truth y; otherwise that for the most likely label does. Bins are of equal width
(Guo et al. 2017, arXiv 1706.04599):

    ``ECE = sum_b n_b / n |mean(y in b) - mean(p in b)|``.

The Brier score is the mean of ``(p - y)^2`` over decisions where several labels may hold, and of
``sum_k (p_k - y_k)^2`` over records otherwise (Brier 1950, from 0 to 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from carefl_secure.errors import DataError, NonFiniteError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def checked(targets: npt.NDArray[Any], scores: npt.NDArray[Any], *, some: bool = True) -> tuple[Bools, Floats]:
    """Return targets as truth values and scores as float64, or refuse what cannot be scored.

    DataError is raised where the shapes differ, the targets are not 0/1, or no record carries a label (``some``);
    NonFiniteError where a score is not finite.
    """
    if targets.ndim != 2 or not targets.size:
        raise DataError(f"targets must be a label matrix [N, K], not of shape {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise DataError("targets must be 0 or 1; give the label matrix, not scores or label ids")
    positive = np.asarray(targets == 1)
    if scores.shape != targets.shape:
        raise DataError(f"scores have shape {scores.shape}, but targets {targets.shape}")
    if not np.isfinite(scores).all():
        raise NonFiniteError("a score is NaN or infinite; nothing can be ranked by it")
    if some and not positive.any():
        raise DataError("no record carries any label; score a split that has labels")
    return positive, scores.astype(np.float64)


def decide(scores: npt.NDArray[Any], thresholds: npt.NDArray[Any] | None) -> Bools:
    """Give each label whose score [N, K] reaches its threshold [K]; without them, each record's best label."""
    if thresholds is None:
        chosen = np.zeros(scores.shape, np.bool_)
        chosen[np.arange(len(scores)), scores.argmax(1)] = True
        return chosen
    if np.shape(thresholds) != scores.shape[1:]:
        raise DataError(f"{scores.shape[1]} labels need as many thresholds, not {np.shape(thresholds)}")
    if np.isnan(thresholds).any():
        raise NonFiniteError("a threshold is NaN; nothing can be decided by it")
    return np.asarray(scores >= thresholds)


def choose_thresholds(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Floats:
    """Return, for each label, the threshold with the highest F1 on these records, ``[K]``.

    Use a validation or public split, never the test split. The threshold lies midway between the last score let in and
    the next one below; of equal F1 the highest threshold wins. A label without a positive record gets infinity.
    """
    positive, values = checked(targets, scores, some=False)
    thresholds = np.full(values.shape[1], np.inf)
    for label in np.flatnonzero(positive.any(0)):
        order = np.argsort(-values[:, label], kind="stable")
        score, truth = values[order, label], positive[order, label]
        last = np.append(score[1:] < score[:-1], True)  # ties are let in together
        f1 = 2 * np.cumsum(truth) / (np.arange(1, len(truth) + 1) + truth.sum())
        best = int(np.argmax(np.where(last, f1, -1.0)))
        threshold = score[best]
        if best + 1 < len(score):
            below = score[best + 1]
            middle = below + (threshold - below) / 2
            threshold = middle if below < middle < threshold else threshold
        thresholds[label] = threshold
    return thresholds


_MACRO = ("macro_precision", "uar", "macro_f1")
_MICRO = ("micro_precision", "micro_recall", "micro_f1")
_SAMPLE = ("sample_precision", "sample_recall", "sample_f1")
DECISIONS = (*_MACRO, *_MICRO, *_SAMPLE, "accuracy", "label_accuracy")  # the figures of :meth:`Decisions.figures`


def _over(part: Floats, whole: Floats) -> Floats:
    """Divide, with 0 where there is nothing to divide by."""
    return np.asarray(part / np.where(whole > 0, whole, np.inf))


class Decisions:
    """Hard decisions (see `decide`) against the truth, both ``[N, K]``, counted once for many weightings."""

    def __init__(self, targets: npt.NDArray[Any], decisions: npt.NDArray[np.bool_]) -> None:
        if targets.ndim != 2 or targets.shape != decisions.shape:
            raise DataError(
                f"decisions have shape {decisions.shape}, but targets {targets.shape}; give one "
                "decision for each label of each record"
            )
        truth = np.asarray(targets == 1)
        self._truth = truth.astype(np.float64)
        self._decided = decisions.astype(np.float64)
        self._hits = (truth & decisions).astype(np.float64)
        hits, held, given = self._hits.sum(1), self._truth.sum(1), self._decided.sum(1)
        self._right = np.column_stack([(truth == decisions).all(1), (truth == decisions).mean(1)]).astype(np.float64)
        self._labelled = (held > 0).astype(np.float64)
        sampled = [_over(hits, given), _over(hits, held), _over(2 * hits, given + held)]
        self._samples = np.column_stack(sampled) * self._labelled[:, None]

    def per_label(self, weights: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Return precision, recall and F1 of each label, ``[K]``; NaN without a positive record."""
        hits, held, given = self._counts(weights)
        none = np.where(held > 0, 0.0, np.nan)
        return (_over(hits, given) + none, _over(hits, held) + none, _over(2 * hits, given + held) + none)

    def figures(self, weights: Floats | None = None) -> dict[str, float]:
        """Return the figures named in :data:`DECISIONS`.

        ``uar``, the unweighted average recall, is macro recall. ``accuracy`` asks for all labels of a record to be
        right, the usual accuracy with one label each; ``label_accuracy`` is the share of right single decisions.
        """
        weight = np.ones(len(self._truth)) if weights is None else weights
        hits, held, given = self._counts(weight)
        known = held > 0
        right, true, said = hits.sum(), held.sum(), given.sum()
        micro = [_over(right, said), _over(right, true), _over(2 * right, true + said)]
        exact, cells = _over(weight @ self._right, weight.sum())
        labelled = float(weight @ self._labelled)
        empty = np.full(3, np.nan)
        samples = weight @ self._samples / labelled if labelled > 0 else empty
        macro = [each[known].mean() for each in self.per_label(weight)] if known.any() else empty
        values = (*macro, *micro, *samples, exact, cells)
        return {name: float(value) for name, value in zip(DECISIONS, values, strict=True)}

    def _counts(self, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
        weight = np.ones(len(self._truth)) if weights is None else weights
        return weight @ self._hits, weight @ self._truth, weight @ self._decided

    def confusion(self) -> npt.NDArray[np.int64]:
        """Return how often label i was decided as j, ``[K, K]``; `DataError` unless each record has one label."""
        if (self._truth.sum(1) != 1).any() or (self._decided.sum(1) != 1).any():
            raise DataError("only records with exactly one label have a confusion matrix")
        return np.asarray(np.rint(self._truth.T @ self._decided), np.int64)


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: probabilities from ``low`` to below ``high``, or to 1."""

    low: float
    high: float
    count: int  # decisions in it
    confidence: float  # their mean probability; NaN in an empty bin
    frequency: float  # how often they were right; NaN in an empty bin


def probabilities(scores: npt.NDArray[Any], *, multi: bool) -> Floats:
    """Turn scores ``[N, K]``, log-odds with ``multi``, else log-probabilities up to a constant, into probabilities."""
    values = np.asarray(scores, np.float64)
    return np.asarray(expit(values) if multi else softmax(values, axis=1))


class Calibration:
    """Probabilities ``[N, K]`` against 0/1 targets ``[N, K]``, in ``bins`` from 0 to 1, for many weightings.

    ``multi`` tells that several labels may hold. DataError is raised where the shapes differ, or a probability lies
    outside 0 to 1; NonFiniteError where one is not finite.
    """

    def __init__(self, targets: npt.NDArray[Any], chances: npt.NDArray[Any], *, multi: bool, bins: int = 15) -> None:
        positive, values = checked(targets, chances, some=False)
        if (values < 0).any() or (values > 1).any():
            raise DataError("probabilities must lie between 0 and 1; turn scores into them first")
        if bins < 1:
            raise DataError(f"calibration needs at least one bin, not {bins}")
        squares = (values - positive) ** 2
        self._brier = squares.mean(1) if multi else squares.sum(1)
        if not multi:
            rows, best = np.arange(len(values)), values.argmax(1)
            values, positive = values[rows, best][:, None], positive[rows, best][:, None]
        self._bins = bins
        places = np.minimum((values * bins).astype(np.int64), bins - 1)
        cells = np.arange(len(values))[:, None] * bins + places

        def per_record(weights: npt.NDArray[Any] | None) -> Floats:
            flat = None if weights is None else weights.ravel().astype(np.float64)
            found = np.bincount(cells.ravel(), flat, minlength=len(values) * bins)
            return found.reshape(len(values), bins).astype(np.float64)

        self._count = per_record(None)
        self._sure, self._true = per_record(values), per_record(positive)

    def figures(self, weights: Floats | None = None) -> dict[str, float]:
        """Return ``ece`` and ``brier``; ``weights`` ``[N]`` are how often each record counts."""
        weight = np.ones(len(self._count)) if weights is None else weights
        apart = np.abs(weight @ self._true - weight @ self._sure).sum()
        total = float(weight.sum())
        return {
            "ece": float(apart / (weight @ self._count).sum()) if total > 0 else float("nan"),
            "brier": float(weight @ self._brier / total) if total > 0 else float("nan"),
        }

    def bins(self) -> tuple[Bin, ...]:
        """Return the reliability diagram, from low to high probability."""
        counts = self._count.sum(0)
        held = np.where(counts > 0, counts, np.nan)
        sure, true = self._sure.sum(0) / held, self._true.sum(0) / held
        return tuple(
            Bin(i / self._bins, (i + 1) / self._bins, int(counts[i]), float(sure[i]), float(true[i]))
            for i in range(self._bins)
        )
