from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.data.corpora.cexpr_fusion import RULES, compound_to_cexpr, fuse_frames
from carefl_secure.data.records import CEXPR, COMPOUND
from carefl_secure.errors import ConfigError, NonFiniteError


def logits(*rows: dict[int, float], classes: int = 7) -> np.ndarray:
    out = np.zeros((len(rows), classes))
    for row, values in zip(out, rows, strict=True):
        row[list(values)] = list(values.values())
    return out


def test_the_three_rules_can_disagree() -> None:
    # Two frames vote 0 by a little; one is very sure of 1; class 2 is second everywhere.
    scores = logits({0: 1.0, 2: 0.9}, {0: 1.0, 2: 0.9}, {1: 8.0, 2: -9.0})
    winners = {rule: int(fuse_frames(scores, ["v"] * 3, rule)[1].argmax()) for rule in RULES}
    assert winners == {"majority": 0, "mean_probability": 1, "mean_logit": 1}
    # A single frame whose logits are huge rules the mean of logits but not that of probabilities.
    scores = logits({0: 3.0}, {0: 3.0}, {1: 100.0})
    assert fuse_frames(scores, ["v"] * 3, "mean_probability")[1].argmax() == 0
    assert fuse_frames(scores, ["v"] * 3, "mean_logit")[1].argmax() == 1


@pytest.mark.parametrize("rule", RULES)
def test_videos_are_kept_apart_and_rows_sum_to_one(rule: str) -> None:
    scores = np.random.default_rng(0).normal(size=(9, 7))
    videos = ["b", "a", "b", "c", "a", "b", "c", "c", "c"]
    names, fused = fuse_frames(scores, videos, rule)  # type: ignore[arg-type]
    assert names == ["a", "b", "c"]
    assert np.allclose(fused.sum(1), 1, atol=2e-9)
    alone = fuse_frames(scores[[1, 4]], ["a", "a"], rule)[1]  # type: ignore[arg-type]
    assert np.allclose(fused[0], alone[0])


@pytest.mark.parametrize("rule", RULES)
def test_other_is_dropped_first(rule: str) -> None:
    scores = logits({3: 1.0, 7: 50.0}, {3: 1.0, 7: 50.0}, classes=8)
    _, with_other = fuse_frames(scores, ["v", "v"], rule)  # type: ignore[arg-type]
    _, without = fuse_frames(scores[:, :7], ["v", "v"], rule)  # type: ignore[arg-type]
    assert with_other.shape == (1, 7)
    assert np.array_equal(with_other, without)
    assert with_other.argmax() == 3


def test_a_tie_of_the_majority_goes_to_the_more_likely() -> None:
    _, fused = fuse_frames(logits({2: 1.0}, {5: 4.0}), ["v", "v"], "majority")
    assert fused.argmax() == 5
    assert fused[0, 2] == 0.5


def test_scores_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        fuse_frames(np.zeros((2, 6)), ["a", "b"])
    with pytest.raises(ConfigError, match="do not fit"):
        fuse_frames(np.zeros((2, 7)), ["a"])
    with pytest.raises(ConfigError, match="shape"):
        fuse_frames(np.zeros(7), ["a"])
    with pytest.raises(ConfigError, match="unknown rule"):
        fuse_frames(np.zeros((1, 7)), ["a"], "best")  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError):
        fuse_frames(np.full((1, 7), np.nan), ["a"])


def test_compound_classes_without_a_counterpart_are_masked() -> None:
    likely = np.random.default_rng(1).dirichlet(np.ones(11), size=3)
    seven = compound_to_cexpr(np.log(likely))
    names = [COMPOUND.labels.index(label) for label in CEXPR.labels]
    assert np.allclose(seven, likely[:, names] / likely[:, names].sum(1, keepdims=True))
    with pytest.raises(ConfigError, match="11 classes"):
        compound_to_cexpr(np.zeros((1, 7)))
