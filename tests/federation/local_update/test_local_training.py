"""Local rules by name: those of the package, those of others, and what is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.federation.local_update import local_training
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.local_update.local_training import LOCAL_RULES, Sgd, find_rule
from carefl_secure.federation.plan.run_plan import LocalPlan
from tests.support.federation import toy_plan
from tests.support.points import point_tasks


def brought(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [EntryPoint("other", value, local_training.ENTRY_POINTS) for value in values]
    monkeypatch.setattr("carefl_secure.extensions.entry_points", lambda group: points)


def test_sgd_steps_along_the_gradient() -> None:
    assert find_rule("sgd") is Sgd is LOCAL_RULES["sgd"]
    gradient = np.array([1.0, -2.0])
    np.testing.assert_array_equal(find_rule("sgd")().step(gradient), gradient)


def test_a_rule_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    brought(monkeypatch, "carefl_secure.federation.local_update.local_training:Sgd")
    assert find_rule("other") is Sgd


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), "is unknown; choose one of sgd"),
        (("a:B", "c:D"), "several packages bring"),
        (("no_such_package:Rule",), "cannot be imported"),
        (("carefl_secure.noise:Nothing",), "cannot be imported"),
    ],
)
def test_a_rule_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], text: str
) -> None:
    brought(monkeypatch, *values)
    with pytest.raises(ConfigError, match=text):
        find_rule("other")


def test_a_client_refuses_an_unknown_rule_before_it_takes_part() -> None:
    plan = toy_plan(6, 40, unit="none", local=LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5, rule="x"))
    (task,) = point_tasks(1)
    with pytest.raises(ConfigError, match=r"federation\.local_rule is 'x'"):
        local_work(plan, task, 0)


def test_the_rule_is_part_of_what_the_parties_agree_on() -> None:
    def plan(rule: str) -> bytes:
        local = LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5, rule=rule)
        return toy_plan(6, 40, unit="none", local=local).hash()

    assert plan("sgd") != plan("momentum")


def test_trust_none_takes_sgd_alone() -> None:
    local = LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5, rule="momentum")
    with pytest.raises(ConfigError, match=r"privacy\.trust=none"):
        toy_plan(6, 40, trust="none", local=local)
