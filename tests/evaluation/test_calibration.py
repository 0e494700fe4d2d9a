from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from carefl_secure.errors import DataError, NonFiniteError
from carefl_secure.evaluation.decisions import Calibration, probabilities


def test_several_labels_by_hand() -> None:
    chances = np.array([[0.9, 0.2], [0.7, 0.2]])
    targets = np.array([[1, 0], [0, 1]])
    calibration = Calibration(targets, chances, multi=True, bins=2)
    # Lower half: twice 0.2, right once of two. Upper half: 0.9 and 0.7, right once of two.
    found = calibration.figures()
    assert found["ece"] == pytest.approx((2 * 0.3 + 2 * 0.3) / 4)
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.64) / 4)
    low, high = calibration.bins()
    assert (low.count, low.confidence, low.frequency) == (2, pytest.approx(0.2), 0.5)
    assert (high.low, high.high, high.confidence) == (0.5, 1.0, pytest.approx(0.8))


def test_one_label_by_hand() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]])
    targets = np.array([[1, 0, 0], [1, 0, 0]])
    found = Calibration(targets, chances, multi=False, bins=1).figures()
    assert found["ece"] == pytest.approx(abs(0.5 - 0.7))  # right once, 0.8 and 0.6 sure
    assert found["brier"] == pytest.approx((0.04 + 0.01 + 0.01 + 0.49 + 0.36 + 0.01) / 2)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    chances = rng.random((400, 1))
    targets = (rng.random((400, 1)) < chances**2).astype(np.int64)
    calibration = Calibration(targets, chances, multi=True, bins=10)
    frequency, confidence = calibration_curve(targets[:, 0], chances[:, 0], n_bins=10)
    assert [one.frequency for one in calibration.bins()] == pytest.approx(frequency)
    assert [one.confidence for one in calibration.bins()] == pytest.approx(confidence)
    counts = np.array([one.count for one in calibration.bins()])
    found = calibration.figures()
    assert found["ece"] == pytest.approx(counts @ abs(frequency - confidence) / 400)
    assert found["brier"] == pytest.approx(brier_score_loss(targets[:, 0], chances[:, 0]))


def test_true_chances_are_calibrated_and_bold_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    chances = rng.random((4000, 5))
    targets = (rng.random(chances.shape) < chances).astype(np.int64)
    assert Calibration(targets, chances, multi=True).figures()["ece"] < 0.02
    bold = np.where(chances > 0.5, 0.99, 0.01)
    assert Calibration(targets, bold, multi=True).figures()["ece"] > 0.2


@pytest.mark.parametrize("multi", [True, False])
def test_weights_are_copies(multi: bool) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(30, 3))
    targets = np.eye(3)[rng.integers(0, 3, 30)]
    chances = probabilities(scores, multi=multi)
    weights = rng.integers(0, 3, 30)
    copied = np.repeat(np.arange(30), weights)
    found = Calibration(targets, chances, multi=multi).figures(weights.astype(np.float64))
    expected = Calibration(targets[copied], chances[copied], multi=multi).figures()
    assert found == pytest.approx(expected)


def test_scores_become_probabilities() -> None:
    scores = np.array([[0.0, math.log(3)]])
    assert probabilities(scores, multi=True)[0] == pytest.approx([0.5, 0.75])
    assert probabilities(scores, multi=False)[0] == pytest.approx([0.25, 0.75])


def test_edges_and_empty_bins() -> None:
    bins = Calibration(np.array([[1, 0]]), np.array([[1.0, 0.0]]), multi=True, bins=3).bins()
    assert [one.count for one in bins] == [1, 0, 1]
    assert math.isnan(bins[1].confidence)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        Calibration(np.array([[1]]), np.array([[1.5]]), multi=True)
    with pytest.raises(NonFiniteError):
        Calibration(np.array([[1]]), np.array([[np.nan]]), multi=True)
    with pytest.raises(DataError, match="bin"):
        Calibration(np.array([[1]]), np.array([[0.5]]), multi=True, bins=0)
