"""The logistic regression of the baselines against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from carefl_secure.errors import DataError
from carefl_secure.evaluation.baselines import logistic_regression


@pytest.mark.parametrize("multi", [False, True])
def test_scores_equal_those_of_scikit_learn(multi: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (300, 12)).astype(np.float32)
    logits = x @ rng.normal(0, 0.3, (12, 4))
    y = (logits > 0).astype(np.float32) if multi else np.eye(4, dtype=np.float32)[logits.argmax(1)]
    ours = logistic_regression(x[:200], y[:200], x[200:], strength=0.3)
    centre, spread = x[:200].mean(0), x[:200].std(0)
    train, new = (x[:200] - centre) / spread, (x[200:] - centre) / spread
    model = LogisticRegression(C=0.3, max_iter=2000, tol=1e-8)
    if multi:
        theirs = np.stack([model.fit(train, y[:200, k]).decision_function(new) for k in range(4)], 1)
    else:
        theirs = model.fit(train, y[:200].argmax(1)).predict_log_proba(new)
    assert np.abs(ours - theirs).max() < 0.02
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9999


def test_too_few_records_are_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        logistic_regression(np.zeros((1, 2), np.float32), np.zeros((1, 2)), np.zeros((1, 2), np.float32))
