from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.assess import FORMAT, Cost, Evaluation, Known, Scored, assess, attributes_of
from carefl_secure.evaluation.groups import Settings

COUNT = 80
SETTINGS = Settings(replicates=40, minimum=20)


def records(count: int = COUNT) -> list[Record]:
    return [
        Record(str(i), (0,), f"person {i // 2}", {"age": "old" if i % 4 < 2 else "young", "id": str(i)})
        for i in range(count)
    ]


def made(multi: bool, **changed: Any) -> Evaluation:
    rng = np.random.default_rng(0)
    targets = (rng.random((COUNT, 3)) < 0.4).astype(np.float32)
    if not multi:
        targets = np.eye(3, dtype=np.float32)[rng.integers(0, 3, COUNT)]
    untuned = rng.normal(size=targets.shape)
    tuned = untuned + 3 * targets - 1
    settings: dict[str, Any] = {"known": Known(targets, tuned, untuned), "settings": SETTINGS} | changed
    space = LabelSpace("toy", ("joy", "fear", "calm"), multi)
    images = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(COUNT)]
    scored = Scored("one", "toy", "test split", space, records(), targets, images)
    return assess(scored, tuned, untuned, **settings)


@pytest.mark.parametrize("multi", [True, False])
def test_everything_is_there_and_is_strict_json(multi: bool) -> None:
    found = made(multi)
    plain = json.loads(found.as_json())
    assert plain == found.to_json()
    assert plain["format"] == FORMAT == "carefl.evaluation/1"
    assert found.sampling.unit == "subject"
    assert found.sampling.units == COUNT // 2
    names = set(found.figures)
    for other in (found.intervals, found.untuned, found.baselines, found.gains, found.gain_intervals):
        assert set(other) == names
    for name in ("mAP", "micro_AP", "macro_f1"):
        assert found.intervals[name].low <= found.figures[name] <= found.intervals[name].high
        assert found.gains[name] == pytest.approx(found.figures[name] - found.untuned[name])
        assert found.figures[name] > found.untuned[name] > found.baselines[name] - 0.2
    assert found.gain_intervals["mAP"].low > 0
    assert [one.attribute for one in found.groups] == ["age"]  # id has too many values
    assert [one.comparison.attribute for one in found.slices] == ["brightness", "sharpness"]
    assert (found.confusion is None) == multi
    assert [label.name for label in found.labels] == ["joy", "fear", "calm"]
    assert (found.labels[0].threshold is None) == (not multi)


def test_what_is_not_defined_becomes_null() -> None:
    plain = made(True).to_json()
    sharp = plain["slices"][1]["comparison"]
    assert sharp["gap"] is None  # all pictures are equally smooth
    empty = [one for one in plain["reliability"] if not one["count"]]
    assert all(one["confidence"] is None for one in empty)


def test_equal_input_gives_equal_text() -> None:
    assert made(True).as_json() == made(True).as_json()
    cost = Cost(1, 2.0, 3.0, 4, 5, 6, 7)
    assert cost.latency_p95_ms == 3.0


def test_without_other_records_thresholds_are_the_sign() -> None:
    found = made(True, known=None)
    assert found.decided_by == "log-odds above zero"
    assert {label.threshold for label in found.labels} == {0.0}
    assert any("scored records themselves" in remark for remark in found.remarks)


def test_thresholds_come_from_the_known_records_alone() -> None:
    targets = np.array([[1, 1, 1], [0, 0, 0]])
    scores = np.array([[9.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    found = made(True, known=Known(targets, scores, scores))
    assert {label.threshold for label in found.labels} == {7.0}
    assert found.remarks == ()
    same = made(True, known=Known(targets, scores, scores, same=True))
    assert "F1 is too good" in same.remarks[0]
    with pytest.raises(DataError, match="thresholds need"):
        made(True, known=Known(targets))


def test_attributes() -> None:
    assert list(attributes_of(records(), None)) == ["age"]
    assert list(attributes_of(records(), ("id",))) == ["id"]
    with pytest.raises(ConfigError, match="choose of age, id"):
        attributes_of(records(), ("hair",))
    with pytest.raises(ConfigError, match="this corpus has none"):
        attributes_of([Record("a", (0,))], ("hair",))
