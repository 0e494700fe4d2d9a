"""Whether a score of 70 % is right 70 % of the time: Brier score, ECE and reliability bins.

Where several labels may hold, every decision of a record and a label counts, with probability p and truth y; otherwise
that for the most likely label does. Bins are of equal width (Guo et al. 2017, arXiv 1706.04599):

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

from carefl_secure.errors import DataError
from carefl_secure.evaluation.decisions import checked

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: probabilities from ``low`` to below ``high``, or to 1.

    ``count`` is the number of decisions in it, ``confidence`` their mean probability and
    ``frequency`` how often they were right; both NaN in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float
    frequency: float


def probabilities(scores: npt.NDArray[Any], *, multi: bool) -> Floats:
    """Turn scores ``[N, K]`` into probabilities ``[N, K]``.

    Scores are log-odds with ``multi`` (several labels may hold), else log-probabilities up to a constant per record.
    """
    values = np.asarray(scores, np.float64)
    return np.asarray(expit(values) if multi else softmax(values, axis=1))


class Calibration:
    """Probabilities ``[N, K]`` against 0/1 targets ``[N, K]``, binned once for many weightings.

    ``multi`` tells that several labels may hold; ``bins`` is the number of bins from 0 to 1. DataError is raised where
    the shapes differ, or a probability lies outside 0 to 1; NonFiniteError where one is not finite.
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
