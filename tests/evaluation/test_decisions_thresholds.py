from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from carefl_secure.errors import DataError, NonFiniteError
from carefl_secure.evaluation.decisions import choose_thresholds, decide
from carefl_secure.evaluation.figures import Figures, Ranking


def average_precisions(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return Ranking(targets, scores).average_precisions()


def mean_average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    return Figures(targets, scores, multi=True, names=("mAP",))()["mAP"]


def macro_f1(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | None = None) -> float:
    return Figures(targets, scores, multi=True, thresholds=thresholds, names=("macro_f1",))()["macro_f1"]


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def drawn(seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((60, 5)) < [0.05, 0.2, 0.5, 0.8, 0.9]).astype(np.float32)
    scores = rng.normal(size=(60, 5)) + targets
    return targets, np.round(scores) if ties else scores


def test_average_precision_by_hand() -> None:
    # Ranks 1 and 3 of 4 are positive: (1/1 + 2/3) / 2.
    assert average_precisions(column(1, 0, 1, 0), column(4, 3, 2, 1))[0] == pytest.approx(5 / 6)
    # The positive stands last: 1/4.
    assert average_precisions(column(0, 0, 0, 1), column(4, 3, 2, 1))[0] == pytest.approx(1 / 4)
    # Two records tie on top, one of them positive: both are let in at once, precision 1/2.
    assert average_precisions(column(1, 0, 0), column(2, 2, 1))[0] == pytest.approx(1 / 2)


def test_a_constant_scores_the_prevalence() -> None:
    targets, _ = drawn(0)
    found = average_precisions(targets, np.full(targets.shape, 0.3))
    assert found == pytest.approx(targets.mean(0))


def test_hard_decisions_obey_the_closed_form() -> None:
    """For a 0/1 score, AP = R P + (1 - R) prevalence."""
    truth = column(1, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    score = column(1, 1, 1, 0, 1, 0, 0, 0, 0, 0)
    assert average_precisions(truth, score)[0] == pytest.approx(0.75 * 0.75 + 0.25 * 0.4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn(seed: int, ties: bool) -> None:
    targets, scores = drawn(seed, ties)
    targets[0] = 1  # each label occurs, so that both average over the same labels
    expected = average_precision_score(targets, scores, average="macro")
    assert mean_average_precision(targets, scores) == pytest.approx(expected)
    thresholds = np.array([0.1, 0.5, 0.0, 1.0, 2.0])
    expected = f1_score(targets, scores >= thresholds, average="macro")
    assert macro_f1(targets, scores, thresholds) == pytest.approx(expected)
    single = np.eye(5)[np.random.default_rng(seed).permutation(np.arange(60) % 5)]
    expected = f1_score(single.argmax(1), scores.argmax(1), average="macro")
    assert macro_f1(single, scores) == pytest.approx(expected)


def test_labels_nobody_carries_are_left_out() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[3.0, 9.0], [1.0, 9.0], [2.0, 9.0]])
    assert np.isnan(average_precisions(targets, scores)[1])
    assert mean_average_precision(targets, scores) == 1.0
    assert macro_f1(targets, scores, np.array([1.5, 0.0])) == 1.0


def test_order_is_all_that_counts() -> None:
    targets, scores = drawn(1)
    squeezed = 1 / (1 + np.exp(-scores * [1, 2, 3, 4, 5] - 7))
    assert mean_average_precision(targets, squeezed) == pytest.approx(mean_average_precision(targets, scores))


def test_argmax_gives_exactly_one_label() -> None:
    assert decide(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), None).tolist() == [
        [True, False, False],
        [False, False, True],
    ]


@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=30))
def test_no_threshold_does_better(rows: list[tuple[int, int]]) -> None:
    truth, score = (column(*values) for values in zip(*rows, strict=True))
    chosen = choose_thresholds(truth, score)
    if not truth.any():
        assert chosen[0] == np.inf
        return
    best = max(macro_f1(truth, score, np.array([cut])) for cut in np.arange(-3.5, 4))
    assert macro_f1(truth, score, chosen) == pytest.approx(best)


def test_threshold_lies_between_the_scores() -> None:
    assert choose_thresholds(column(1, 1, 0), column(4, 2, 1)).tolist() == [1.5]
    assert choose_thresholds(column(1, 1), column(4, 2)).tolist() == [2.0]
    near = np.nextafter(1.0, 2.0)
    assert choose_thresholds(column(1, 0), column(near, 1.0)).tolist() == [near]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(bad: float) -> None:
    scores = column(1, bad)
    for measure in (mean_average_precision, choose_thresholds, macro_f1):
        with pytest.raises(NonFiniteError):
            measure(column(1, 0), scores)
    with pytest.raises(NonFiniteError):
        macro_f1(column(1, 0), column(1, 0), np.array([np.nan]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        mean_average_precision(column(1, 0), column(1, 0, 1))
    with pytest.raises(DataError, match="no record carries"):
        mean_average_precision(column(0, 0), column(1, 0))
    with pytest.raises(DataError, match="0 or 1"):
        mean_average_precision(column(2, 0), column(1, 0))
    with pytest.raises(DataError, match="label matrix"):
        mean_average_precision(np.array([1, 0]), np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="thresholds"):
        macro_f1(column(1, 0), column(1, 0), np.array([0.5, 0.5]))
    with pytest.raises(DataError, match="label matrix"):
        mean_average_precision(np.zeros((0, 2)), np.zeros((0, 2)))
