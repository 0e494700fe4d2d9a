from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from carefl_secure.errors import DataError, NonFiniteError
from carefl_secure.evaluation.figures import Figures, Ranking


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def drawn(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((50, 4)) < [0.1, 0.3, 0.5, 0.9]).astype(np.int64)
    targets[:, 2] |= ~targets.any(1)  # every record has a label
    scores = rng.normal(size=(50, 4)) + targets
    return targets, np.round(scores) if ties else scores


def slow_eleven(truth: np.ndarray, score: np.ndarray) -> float:
    """The definition, threshold by threshold, without a shared line of code."""
    points = []
    for cut in np.unique(score):
        let_in = score >= cut
        hits = int((truth[let_in] == 1).sum())
        points.append((hits, hits / int(let_in.sum())))
    total = int(truth.sum())
    best = [max(p for hits, p in points if 10 * hits >= i * total) for i in range(11)]
    return sum(best) / 11


def test_eleven_points_by_hand() -> None:
    # Positives at ranks 1 and 3 of 4: precision 1 up to recall 1/2 (six points), 2/3 up to 1.
    found = Ranking(column(1, 0, 1, 0), column(4, 3, 2, 1)).eleven_point()
    assert found[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # Ranks 2 and 3: the later precision 2/3 is the higher one and counts from recall 0 on.
    found = Ranking(column(0, 1, 1, 0), column(4, 3, 2, 1)).eleven_point()
    assert found[0] == pytest.approx(2 / 3)


def test_both_definitions_by_hand_where_scores_tie() -> None:
    # Steps: {1 of 1}, {2 of 4}, {3 of 6}; recalls 1/3, 2/3, 1.
    truth, score = column(1, 1, 0, 0, 1, 0), column(3, 2, 2, 2, 1, 1)
    ranking = Ranking(truth, score)
    assert ranking.average_precisions()[0] == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
    # Points 0 to 0.3 lie below recall 1/3; the other seven get 1/2.
    assert ranking.eleven_point()[0] == pytest.approx((4 * 1 + 7 * 0.5) / 11)


def test_the_order_within_a_tie_changes_nothing() -> None:
    truth, score = column(1, 0, 0, 1, 0), column(1, 1, 1, 0, 0)
    for order in ([0, 1, 2, 3, 4], [2, 1, 0, 4, 3]):
        ranking = Ranking(truth[order], score[order])
        assert ranking.average_precisions()[0] == pytest.approx((1 / 3 + 2 / 5) / 2)
        assert ranking.eleven_point()[0] == pytest.approx(2 / 5)


def test_a_recall_of_three_tenths_reaches_the_point_three_tenths() -> None:
    # Ten positives: three on top, then seven negatives, then seven positives.
    truth = column(*[1] * 3, *[0] * 7, *[1] * 7)
    score = column(*range(17, 0, -1))
    expected = (4 * 1 + 7 * 10 / 17) / 11
    assert Ranking(truth, score).eleven_point()[0] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn_and_the_definition(seed: int, ties: bool) -> None:
    targets, scores = drawn(seed, ties)
    ranking = Ranking(targets, scores)
    each = [average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)]
    assert ranking.average_precisions() == pytest.approx(each)
    found = Figures(targets, scores, multi=True)()
    assert ranking.average_precisions().mean() == pytest.approx(
        average_precision_score(targets, scores, average="macro")
    )
    assert found["micro_AP"] == pytest.approx(average_precision_score(targets, scores, average="micro"))
    assert found["sample_AP"] == pytest.approx(average_precision_score(targets, scores, average="samples"))
    expected = [slow_eleven(t, s) for t, s in zip(targets.T, scores.T, strict=True)]
    assert ranking.eleven_point() == pytest.approx(expected)
    assert found["mAP_11point"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_weights_are_copies(ties: bool, pooled: bool) -> None:
    """A record of weight 2 counts as two records, one of weight 0 as none."""
    targets, scores = drawn(7, ties)
    weights = np.random.default_rng(8).integers(0, 4, len(targets))
    copied = np.repeat(np.arange(len(targets)), weights)
    weighed = Ranking(targets, scores, pooled=pooled)
    copies = Ranking(targets[copied], scores[copied], pooled=pooled)
    weight = weights.astype(np.float64)
    assert weighed.average_precisions(weight) == pytest.approx(copies.average_precisions())
    assert weighed.eleven_point(weight) == pytest.approx(copies.eleven_point())


def test_a_constant_has_the_prevalence_in_both_definitions() -> None:
    targets, _ = drawn(0, False)
    ranking = Ranking(targets, np.zeros(targets.shape))
    assert ranking.average_precisions() == pytest.approx(targets.mean(0))
    assert ranking.eleven_point() == pytest.approx(targets.mean(0))


def test_labels_without_a_positive_are_undefined() -> None:
    ranking = Ranking(np.array([[1, 0], [0, 0]]), np.array([[1.0, 2.0], [0.0, 1.0]]))
    assert ranking.average_precisions()[0] == ranking.eleven_point()[0] == 1
    assert np.isnan([ranking.average_precisions()[1], ranking.eleven_point()[1]]).all()
    assert np.isnan(ranking.average_precisions(np.array([0.0, 1.0]))).all()
    samples = Ranking(np.array([[1, 0], [0, 0]]).T, np.array([[1, 2], [0, 1]]).T).average_precisions()
    assert samples[0] == 0.5
    assert np.isnan(samples[1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        Ranking(column(1, 0), column(1, np.nan))
    with pytest.raises(DataError, match="shape"):
        Ranking(column(1, 0), column(1, 0, 1))
