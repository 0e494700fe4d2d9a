from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.evaluation.bootstrap import units_of
from carefl_secure.evaluation.figures import Figures
from carefl_secure.evaluation.groups import UNSTATED, Comparison, Settings, compare


def people(skill: dict[str | None, float], each: int, seed: int = 0) -> tuple[list[str | None], Figures]:
    """Return records whose scores are as good as their group's skill."""
    rng = np.random.default_rng(seed)
    values = [name for name in skill for _ in range(each)]
    targets = (rng.random((len(values), 3)) < 0.4).astype(np.float32)
    strength = np.array([skill[name] for name in values])[:, None]
    scores = strength * (2 * targets - 1) + rng.normal(size=targets.shape)
    return values, Figures(targets, scores, multi=True, thresholds=np.zeros(3))


def compared(
    values: list[str | None], figures: Figures, units: np.ndarray | None = None, minimum: int = 30
) -> Comparison:
    own = np.arange(len(values)) if units is None else units
    return compare("skin", values, figures, own, Settings(60, minimum=minimum, shuffles=60))


def test_a_group_that_is_served_worse_is_found() -> None:
    values, figures = people({"a": 1.5, "b": 0.0, "c": 1.5}, 100)
    found = compared(values, figures)
    assert found.worst == "b"
    assert found.gap is not None
    assert found.gap_by_chance is not None
    assert found.gap > 2 * found.gap_by_chance
    scored = {group.value: group for group in found.groups}
    assert found.gap == pytest.approx(scored[str(found.best)].figures["mAP"] - scored["b"].figures["mAP"])
    assert scored["b"].intervals["mAP"].high < scored["a"].intervals["mAP"].low
    own = figures.part(np.arange(100, 200), ["mAP", "macro_f1", "uar"])
    assert scored["b"].figures == own()
    assert scored["b"].baseline == pytest.approx(figures.targets[100:200].mean())


def test_chance_alone_stays_below_what_chance_gives() -> None:
    above = 0
    for seed in range(20):
        values, figures = people({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 40, seed)
        found = compared(values, figures)
        assert found.gap is not None
        assert found.gap_by_chance is not None
        assert found.gap > 0  # never negative, hence the need for comparison
        above += found.gap > found.gap_by_chance
    assert above <= 4  # one in twenty is expected


def test_small_groups_are_named_with_their_counts() -> None:
    values, figures = people({"a": 1.0, "b": 1.0}, 60)
    values[:7] = ["rare"] * 7
    values[7:12] = [None] * 5
    found = compared(values, figures)
    assert {group.value: (group.records, group.small) for group in found.groups} == {
        "a": (48, False),
        "b": (60, False),
        "rare": (7, True),
        UNSTATED: (5, True),
    }
    rare = next(group for group in found.groups if group.value == "rare")
    assert rare.figures == rare.intervals == {}
    assert found.gap is not None
    assert compared(values, figures, minimum=7).worst in ("a", "b")  # seven are below ten persons
    assert compared(values, figures, minimum=55).gap is None


def test_many_records_of_few_persons_are_too_small() -> None:
    values, figures = people({"a": 1.0, "b": 1.0}, 60)
    units = units_of([f"a{i % 5}" for i in range(60)] + [f"b{i % 20}" for i in range(60)])
    first, second = compared(values, figures, units).groups
    assert (first.small, first.records, first.units) == (True, 60, 5)
    assert (second.small, second.units) == (False, 20)


def test_labels_that_a_group_lacks_are_counted() -> None:
    values, figures = people({"a": 1.0, "b": 1.0}, 50)
    targets = figures.targets.copy()
    targets[:50, 2] = False
    found = compared(values, Figures(targets, figures.scores, multi=True, thresholds=np.zeros(3)))
    assert [group.labels for group in found.groups] == [2, 3]
    targets[:50] = False
    found = compared(values, Figures(targets, figures.scores, multi=True, thresholds=np.zeros(3)))
    assert [group.small for group in found.groups] == [True, False]


def test_a_person_may_stand_in_two_groups() -> None:
    values, figures = people({"dark": 1.0, "light": 1.0}, 40)
    units = np.tile(np.arange(40), 2)
    assert compared(values, figures, units).gap_by_chance is not None


def test_what_does_not_fit_is_refused() -> None:
    values, figures = people({"a": 1.0, "b": 1.0}, 40)
    with pytest.raises(ConfigError, match="79 values"):
        compared(values[1:], figures)
    with pytest.raises(ConfigError, match="compared by"):
        compare("x", values, figures, np.arange(80), Settings(), metric="ece")
