"""Logistic regression on fixed features: what a practitioner would try before tuning a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from carefl_secure.errors import DataError

Floats = npt.NDArray[np.float32]

STRENGTH = 0.01
"""C of the regression: on vision features, with a few thousand records, better than the customary 1."""

_STEPS = 200


def logistic_regression(
    train: Floats, targets: npt.NDArray[Any], test: Floats, *, strength: float = STRENGTH
) -> Floats:
    r"""Fit a logistic regression, and return the log-odds or log-probabilities of other records, [M, K].

    Features are scaled to mean 0 and deviation 1 over the training records. Minimised by L-BFGS is

    .. math:: \frac12 \lVert W \rVert^2 + C \sum_i \ell_i

    with intercepts that are not penalised: the cross-entropy of a softmax where every record has one label, else the
    sum over the labels of binary cross-entropies. This is scikit-learn's ``LogisticRegression``.

    Parameters
    ----------
    train, test : ndarray of float32, shapes [N, D] and [M, D]
    targets : ndarray, shape [N, K]
        0/1 label matrix of the training records.
    strength : float
        C, the inverse of the strength of the penalty.
    """
    if len(train) != len(targets) or len(train) < 2:
        raise DataError(f"{len(train)} training records and {len(targets)} rows of targets: at least two of each")
    single = bool((targets.sum(1) == 1).all())
    centre, spread = train.mean(0), train.std(0)
    scale = np.where(spread > 1e-9, spread, 1.0).astype(np.float32)
    x, new = (train - centre) / scale, (test - centre) / scale
    y = targets.astype(np.float32)
    shape = (x.shape[1] + 1, y.shape[1])

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = flat.reshape(shape).astype(np.float32)
        logits = x @ weights[:-1] + weights[-1]
        if single:
            logits -= logits.max(1, keepdims=True)
            total = np.log(np.exp(logits).sum(1, keepdims=True))
            cost, error = float((total[:, 0] - (logits * y).sum(1)).sum()), np.exp(logits - total) - y
        else:
            cost, error = float((np.logaddexp(0, logits) - logits * y).sum()), 1 / (1 + np.exp(-logits)) - y
        slope = np.concatenate([strength * (x.T @ error) + weights[:-1], strength * error.sum(0, keepdims=True)])
        penalty = 0.5 * float(np.square(weights[:-1], dtype=np.float64).sum())
        return strength * cost + penalty, slope.ravel().astype(np.float64)

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    weights = found.x.reshape(shape).astype(np.float32)
    logits = new @ weights[:-1] + weights[-1]
    return np.asarray(logits - np.logaddexp.reduce(logits, 1, keepdims=True) if single else logits, np.float32)
