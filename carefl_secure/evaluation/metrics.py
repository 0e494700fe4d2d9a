"""Mean average precision, macro F1 and the thresholds that F1 needs.

All averages are over the labels that have at least one positive record: a label nobody carries has
no recall, hence neither average precision nor F1. Targets are 0/1 label matrices ``[N, K]``, scores
and decisions are ``[N, K]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import DataError, NonFiniteError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def _positives(targets: npt.NDArray[Any]) -> Bools:
    if targets.ndim != 2 or not targets.size:
        raise DataError(f"targets must be a label matrix [N, K], not of shape {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise DataError("targets must be 0 or 1; give the label matrix, not scores or label ids")
    return np.asarray(targets == 1)


def checked(targets: npt.NDArray[Any], scores: npt.NDArray[Any], *, some: bool = True) -> tuple[Bools, Floats]:
    """Return targets as truth values and scores as float64, or refuse what cannot be scored.

    Raises
    ------
    DataError
        If the shapes differ, the targets are not 0/1, or no record carries a label (``some``).
    NonFiniteError
        If a score is not finite.
    """
    positive = _positives(targets)
    if scores.shape != targets.shape:
        raise DataError(f"scores have shape {scores.shape}, but targets {targets.shape}")
    if not np.isfinite(scores).all():
        raise NonFiniteError("a score is NaN or infinite; nothing can be ranked by it")
    if some and not positive.any():
        raise DataError("no record carries any label; score a split that has labels")
    return positive, scores.astype(np.float64)


def average_precisions(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Floats:
    """Return ``AP = sum_n (R_n - R_(n-1)) P_n`` of each label, ``[K]``; NaN without a positive.

    Only the order of records within one label counts. Records with equal scores count as one step,
    so a constant score has the label's prevalence.
    """
    positive, values = checked(targets, scores)
    return np.array(
        [
            _average_precision(truth, score) if truth.any() else np.nan
            for truth, score in zip(positive.T, values.T, strict=True)
        ]
    )


def _average_precision(truth: Bools, score: Floats) -> float:
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(score[1:] < score[:-1], True))  # ties count as one step
    found = hits[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / found[-1])


def mean_average_precision(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Return the mean of :func:`average_precisions` over labels with a positive record.

    This is scikit-learn's definition without interpolation; for the 11-point variant of EMOTIC's
    official code see :mod:`carefl_secure.evaluation.average_precision`.
    """
    return float(np.nanmean(average_precisions(targets, scores)))


def decide(scores: npt.NDArray[Any], thresholds: npt.NDArray[Any] | None) -> Bools:
    """Turn scores ``[N, K]`` into boolean decisions ``[N, K]``.

    A label is given where its score reaches its threshold, ``[K]``. Without thresholds each record
    gets the one label with the highest score.
    """
    if thresholds is None:
        chosen = np.zeros(scores.shape, np.bool_)
        chosen[np.arange(len(scores)), scores.argmax(1)] = True
        return chosen
    if np.shape(thresholds) != scores.shape[1:]:
        raise DataError(f"{scores.shape[1]} labels need as many thresholds, not {np.shape(thresholds)}")
    if np.isnan(thresholds).any():
        raise NonFiniteError("a threshold is NaN; nothing can be decided by it")
    return np.asarray(scores >= thresholds)


def f1_scores(targets: npt.NDArray[Any], decisions: npt.NDArray[np.bool_]) -> Floats:
    """Return ``F1 = 2 TP / (2 TP + FP + FN)`` of each label; NaN without a positive record."""
    positive = _positives(targets)
    if decisions.shape != positive.shape:
        raise DataError(f"decisions have shape {decisions.shape}, but targets {positive.shape}")
    hits = (positive & decisions).sum(0)
    total = positive.sum(0) + decisions.sum(0)
    return np.where(positive.any(0), 2 * hits / np.maximum(total, 1), np.nan)


def macro_f1(targets: npt.NDArray[Any], scores: npt.NDArray[Any], thresholds: npt.NDArray[Any] | None = None) -> float:
    """Return the mean F1 over labels with a positive record, between 0 and 1.

    Take the thresholds (see :func:`decide`) from other records (:func:`choose_thresholds`).
    """
    _, values = checked(targets, scores)
    return float(np.nanmean(f1_scores(targets, decide(values, thresholds))))


def choose_thresholds(targets: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Floats:
    """Return, for each label, the threshold with the highest F1 on these records, ``[K]``.

    Use a validation or public split, never the test split. The threshold lies midway between the
    last score let in and the next one below; of equal F1 the highest threshold wins. A label
    without a positive record gets infinity: it is not given.
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
