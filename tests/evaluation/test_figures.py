from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from carefl_secure.errors import DataError
from carefl_secure.evaluation.decisions import DECISIONS
from carefl_secure.evaluation.figures import NAMES, Figures, prevalence_scores


def drawn(multi: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random((60, 4)) < [0.2, 0.4, 0.6, 0.3]
    if not multi:
        targets = np.eye(4)[rng.integers(0, 4, 60)] == 1
    return targets.astype(np.float32), rng.normal(size=(60, 4)) + targets


@pytest.mark.parametrize("multi", [True, False])
def test_all_figures_of_resamples_are_those_of_the_copied_records(multi: bool) -> None:
    targets, scores = drawn(multi)
    cuts = np.array([0.1, 0.4, 0.7, 0.2]) if multi else None
    weights = np.random.default_rng(1).integers(0, 3, 60)
    copied = np.repeat(np.arange(60), weights)
    figures = Figures(targets, scores, multi=multi, thresholds=cuts)
    found = figures(weights.astype(np.float64))
    assert set(found) == set(NAMES)
    assert found == pytest.approx(figures.part(copied)())


def test_names_agree_with_the_plain_functions() -> None:
    targets, scores = drawn(True)
    cuts = np.full(4, 0.5)
    found = Figures(targets, scores, multi=True, thresholds=cuts)()
    assert found["mAP"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, scores >= cuts, average="macro"))
    chosen = Figures(targets, scores, multi=True, thresholds=cuts, names=["uar", "mAP"])()
    assert chosen == {name: found[name] for name in ("mAP", "uar")}


def test_figures_of_each_label() -> None:
    targets, scores = drawn(True)
    targets[:, 1] = 0
    figures = Figures(targets, scores, multi=True, thresholds=np.zeros(4))
    for name, macro in (("AP", "mAP"), ("AP_11point", "mAP_11point"), ("recall", "uar")):
        values = figures.per_label()[name]
        assert np.isnan(values).tolist() == [False, True, False, False]
        assert np.nanmean(values) == pytest.approx(figures()[macro])


def test_the_baseline_with_several_labels() -> None:
    known, _ = drawn(True, 2)
    targets, _ = drawn(True, 3)
    scores, cuts = prevalence_scores(known, len(targets), multi=True)
    found = Figures(targets, scores, multi=True, thresholds=cuts)()
    shares = targets.mean(0)
    assert found["mAP"] == pytest.approx(shares.mean())
    assert found["mAP_11point"] == pytest.approx(shares.mean())
    assert found["macro_f1"] == pytest.approx((2 * shares / (1 + shares)).mean())
    assert found["brier"] == pytest.approx(((targets - known.mean(0)) ** 2).mean())


def test_the_baseline_with_one_label_each() -> None:
    known = np.eye(3)[[0] * 5 + [1] * 3]
    targets = np.eye(3)[[0] * 6 + [1] * 2]
    scores, cuts = prevalence_scores(known, 8, multi=False)
    found = Figures(targets, scores, multi=False, thresholds=cuts)()
    assert found["accuracy"] == 6 / 8
    assert found["uar"] == 1 / 2
    assert np.isfinite(scores).all()  # a label that nobody carries is unlikely, not impossible


def test_what_does_not_fit_is_refused() -> None:
    targets, scores = drawn(True)
    with pytest.raises(DataError, match="no figure 'map'"):
        Figures(targets, scores, multi=True, names=["map"])
    with pytest.raises(DataError, match="label shares"):
        prevalence_scores(np.zeros((0, 3)), 2, multi=True)
    assert set(DECISIONS) < set(NAMES)
