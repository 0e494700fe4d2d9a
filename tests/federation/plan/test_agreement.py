"""Agreements as JSON: there and back, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run, plan_stages
from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.federation.plan.staged import Stage, StagedPlan
from carefl_secure.strict_json import canonical_hash, canonical_json

REQUEST = PlanRequest(
    unit="record",
    dimension=60,
    clients=6,
    rounds=3,
    public_records=240,
    sample_rate=0.1,
    clipping_norm=1.0,
    delta=1e-5,
    target_epsilon=5.0,
)
LOCAL = LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5)
REQUESTS = {
    "record": REQUEST,
    "person": dataclasses.replace(REQUEST, unit="person", records_per_person=2),
    "client": dataclasses.replace(REQUEST, unit="client", sample_rate=1.0, local=LOCAL),
    "own noise": dataclasses.replace(REQUEST, trust="none", local=LOCAL),
    "none": dataclasses.replace(REQUEST, unit="none", target_epsilon=None, normalise=False),
}


def there_and_back(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_plan_comes_back_as_it_was(name: str) -> None:
    plan = plan_run(REQUESTS[name])
    again = RunPlan.from_json(there_and_back(plan.to_json()))
    assert again == plan
    assert again.hash() == plan.hash()


def test_stages_come_back_as_they_were() -> None:
    shorter = dataclasses.replace(REQUEST, rounds=2, public_records=120)
    plan = plan_stages(("1-basic", "2-compound"), (REQUEST, shorter))
    again = StagedPlan.from_json(there_and_back(plan.to_json()))
    assert again == plan
    assert again.privacy.rounds == 5
    assert [again.stage(i).offset for i in (0, 1)] == [0, 3]
    assert again.stage(0).digest == plan.stage(1).digest


def test_a_plain_run_is_a_run_of_one_stage() -> None:
    plan = plan_run(REQUEST)
    stage = Stage.only(plan)
    assert stage.agreement == plan.to_json()
    assert stage.digest == plan.hash().hex()
    assert (stage.name, stage.number, stage.offset) == ("", 1, 0)
    assert StagedPlan.from_json(plan.to_json()).plans == (plan,)


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "a part is missing": lambda p: p.pop("encoding"),
    "a part is unknown": lambda p: p.update(more=1),
    "a field is missing": lambda p: p["privacy"].pop("delta"),
    "a field is unknown": lambda p: p["encoding"].update(more=1),
    "a text for a number": lambda p: p["encoding"].update(scale="1"),
    "a number for a truth value": lambda p: p["privacy"].update(normalise=1),
    "a truth value for a number": lambda p: p["privacy"].update(rounds=True),
    "a fraction for a count": lambda p: p["privacy"].update(clients=6.0),
    "an unknown unit": lambda p: p["privacy"].update(unit="planet"),
    "no number": lambda p: p["privacy"].update(delta=math.nan),
    "no scale": lambda p: p["encoding"].update(scale=0.0),
    "another format": lambda p: p["privacy"].update(format="carefl.plan/0"),
    "no threshold": lambda p: p.update(threshold=0),
    "a cheaper event": lambda p: p["event"].update(variance=2 * p["event"]["variance"]),
    "no event": lambda p: p.update(event=None),
    "no object": lambda p: p.update(privacy=[]),
    "less noise": lambda p: p["privacy"].update(noise_multiplier=0.0),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plan_is_refused(name: str) -> None:
    stored = there_and_back(plan_run(REQUEST).to_json())
    BAD[name](stored)
    with pytest.raises((ConfigError, PrivacyError)):
        RunPlan.from_json(stored)
    with pytest.raises((ConfigError, PrivacyError)):
        StagedPlan.from_json(stored)


@pytest.mark.parametrize("value", [None, [], "plan", 3])
def test_what_is_no_object_is_refused(value: Any) -> None:
    for kind in (RunPlan, StagedPlan, AggregationConfig):
        with pytest.raises(ConfigError):
            kind.from_json(value)


def test_stages_that_do_not_make_up_the_whole_are_refused() -> None:
    plan = plan_stages(("1-a", "2-b"), (REQUEST, REQUEST))
    stored = there_and_back(plan.to_json())
    for wrong in ([], stored["stages"][:1], "stages", [{**stored["stages"][0], "name": 1}]):
        with pytest.raises(ConfigError):
            StagedPlan.from_json({**stored, "stages": wrong})


def test_an_aggregation_comes_back_as_it_was() -> None:
    agreed = AggregationConfig(protocol="committee", members=5, dropout_tolerance=2, prefetch=False)
    assert AggregationConfig.from_json(there_and_back(agreed.to_json())) == agreed
    for wrong in ({"protocol": "no name!"}, {"members": 0}, {"members": "3"}, {"prefetch": 1}):
        with pytest.raises(ConfigError):
            AggregationConfig.from_json({**agreed.to_json(), **wrong})
    assert (agreed.helpers, AggregationConfig().helpers) == (5, 0)
    assert agreed.label != dataclasses.replace(agreed, dropout_tolerance=0).label


def test_equal_values_hash_the_same_in_any_order() -> None:
    one, other = {"a": 1, "b": {"c": 2.0, "d": None}}, {"b": {"d": None, "c": 2.0}, "a": 1}
    assert canonical_json(one) == canonical_json(other) == b'{"a":1,"b":{"c":2.0,"d":null}}'
    assert canonical_hash(one) == canonical_hash(other) != canonical_hash({"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": math.nan})
