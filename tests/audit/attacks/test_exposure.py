"""Exposure is exact on losses that are known, and uniform on secrets that were never planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _exposure import judge_exposure

from carefl_secure.audit.attacks.exposure import (
    Exposure,
    ExposureView,
    judge_natural,
    label_secrets,
    natural_exposure,
    secret_losses,
)
from carefl_secure.errors import ConfigError


def test_ranks_become_bits_and_ties_stand_in_their_middle() -> None:
    bits = Exposure()(ExposureView(np.array([[0.1, 0.4, 0.2, 0.3], [1.0, 1.0, 1.0, 1.0]])))
    np.testing.assert_allclose(bits[0], [2.0, 0.0, 1.0, 2 - math.log2(3)])
    np.testing.assert_allclose(bits[1], 2 - math.log2(2.5))


def test_losses_of_sets_are_those_of_a_direct_sum() -> None:
    rng = np.random.default_rng(0)
    scores, secrets = rng.normal(size=(3, 6)), label_secrets(6, 2)
    assert secrets.shape == (15, 6) and set(secrets.sum(axis=1)) == {2}
    found = secret_losses(scores, secrets)
    chance = 1 / (1 + np.exp(-scores))
    for row in range(3):
        for place, members in enumerate(secrets):
            direct = -np.log(np.where(members, chance[row], 1 - chance[row])).mean()
            assert found[row, place] == pytest.approx(direct)


@pytest.mark.parametrize(("labels", "chosen"), [(5, 0), (5, 5), (40, 10)])
def test_spaces_that_are_none_are_refused(labels: int, chosen: int) -> None:
    with pytest.raises(ConfigError, match="no space"):
        label_secrets(labels, chosen)


def verdict(memory: float, coins: bool = True) -> dict[str, float]:
    rng = np.random.default_rng(4)
    losses, planted = rng.normal(size=(200, 512)), rng.random(200) < 0.5
    truth = rng.integers(512, size=200)
    losses[np.arange(200), truth] -= memory * planted
    finding = judge_exposure(Exposure()(ExposureView(losses)), truth, planted, 1e-5, what="labels", coins=coins)
    assert finding.verdict == "measured"
    return dict(finding.figures)  # type: ignore[arg-type]


def test_what_was_learnt_by_heart_is_exposed() -> None:
    found = verdict(10.0)
    assert found["exposure of planted"] == found["largest possible"] == 9.0
    assert found["epsilon lower bound: f-dp"] > 1.5


def test_what_was_never_planted_is_not() -> None:
    found = verdict(0.0)
    for who in ("planted", "others"):
        # 1 / ln 2 bits on average, whatever the space
        assert abs(found[f"exposure of {who}"] - 1.44) < 5 * found[f"standard error of {who}"]
    assert found["epsilon lower bound: f-dp"] == 0.0
    assert "epsilon lower bound: f-dp" not in verdict(0.0, coins=False)


def test_natural_labels_are_ranked_among_sets_of_their_own_size() -> None:
    rng = np.random.default_rng(1)
    targets = np.zeros((4, 8), np.float32)
    targets[0, 2] = targets[1, [1, 4]] = 1
    targets[2, :6] = 1
    scores = rng.normal(size=(4, 8))
    scores[0, 2] = scores[1, 1] = scores[1, 4] = 20.0
    bits = natural_exposure(scores, targets, True)
    assert bits[0] == 3.0 and bits[1] == pytest.approx(math.log2(28))
    assert np.isnan(bits[2]) and np.isnan(bits[3])  # too many labels, and none
    single = natural_exposure(scores, np.eye(8, dtype=np.float32)[[2, 4, 0, 1]], False)
    assert single[0] == 3.0 and np.isfinite(single).all()


def test_only_the_members_gain_speaks() -> None:
    rng = np.random.default_rng(2)
    base, member = rng.normal(3, 1, 400), np.arange(400) < 200
    better = base + 2.0 + rng.normal(0, 0.5, 400)
    calm = judge_natural(base, better, member).figures
    assert abs(calm["members less others"]) < 5 * calm["standard error"]  # type: ignore[arg-type, operator]
    leaky = judge_natural(base, better + 1.0 * member, member).figures
    assert leaky["members less others"] > 10 * leaky["standard error"]  # type: ignore[operator]
    nothing = np.full(400, np.nan)
    assert judge_natural(nothing, nothing, member).verdict == "skipped"
