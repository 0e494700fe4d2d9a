from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    hamming_loss,
    precision_recall_fscore_support,
)

from carefl_secure.errors import DataError
from carefl_secure.evaluation.decisions import DECISIONS, Decisions


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((40, 4)) < 0.4).astype(np.int64)
    targets[:, 1] |= ~targets.any(1)
    return targets, rng.random((40, 4)) < 0.2 + 0.4 * targets


def test_by_hand() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
    decided = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.bool_)
    found = Decisions(targets, decided).figures()
    assert set(found) == set(DECISIONS)
    # First label: 2 of 2 decided, 2 of 2 held. Second: 0 of 1, 0 of 2. Third: held by nobody.
    assert found["macro_precision"] == found["uar"] == found["macro_f1"] == 0.5
    assert found["micro_precision"] == pytest.approx(2 / 3)
    assert found["micro_recall"] == pytest.approx(2 / 4)
    assert found["micro_f1"] == pytest.approx(4 / 7)
    assert found["sample_precision"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["sample_recall"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["sample_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == 0
    assert found["label_accuracy"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn(seed: int) -> None:
    targets, decided = drawn(seed)
    decisions = Decisions(targets, decided)
    found = decisions.figures()
    for average, recall in (("macro", "uar"), ("micro", "micro_recall"), ("samples", None)):
        expected = precision_recall_fscore_support(targets, decided, average=average, zero_division=0.0)
        name = average.removesuffix("s")
        names = (f"{name}_precision", recall or "sample_recall", f"{name}_f1")
        assert [found[key] for key in names] == pytest.approx(expected[:3])
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, decided))
    assert found["label_accuracy"] == pytest.approx(1 - hamming_loss(targets, decided))
    assert decisions.per_label()[2] == pytest.approx(f1_score(targets, decided, average=None))


def test_one_label_each() -> None:
    rng = np.random.default_rng(0)
    truth, given = rng.permutation(np.arange(60) % 3), rng.integers(0, 3, 60)
    decisions = Decisions(np.eye(3)[truth], np.eye(3, dtype=np.bool_)[given])
    found = decisions.figures()
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, given))
    assert found["uar"] == pytest.approx(balanced_accuracy_score(truth, given))
    assert found["micro_f1"] == pytest.approx(found["accuracy"])
    assert (decisions.confusion() == confusion_matrix(truth, given)).all()


def test_weights_are_copies() -> None:
    targets, decided = drawn(5)
    targets[0] = 0  # a record without a label
    weights = np.random.default_rng(6).integers(0, 3, len(targets))
    copied = np.repeat(np.arange(len(targets)), weights)
    found = Decisions(targets, decided).figures(weights.astype(np.float64))
    assert found == pytest.approx(Decisions(targets[copied], decided[copied]).figures())


def test_records_and_labels_without_a_positive_are_left_out() -> None:
    targets = np.array([[1, 0], [0, 0]])
    decisions = Decisions(targets, np.array([[True, True], [True, True]]))
    found = decisions.figures()
    assert found["uar"] == found["sample_recall"] == 1
    assert found["sample_precision"] == 0.5
    assert np.isnan(decisions.per_label()[0][1])
    assert np.isnan(decisions.figures(np.array([0.0, 1.0]))["macro_f1"])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        Decisions(np.zeros((2, 3)), np.zeros((2, 2), np.bool_))
    with pytest.raises(DataError, match="confusion"):
        Decisions(np.array([[1, 1]]), np.array([[True, False]])).confusion()
