"""A further run over the same ledgers: planned with what is left, or refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import BudgetExceededError
from carefl_secure.federation.plan.calibrate import PlanRequest, earlier_spends, plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.privacy import Ledger, epsilon
from carefl_secure.privacy.accounting.composition import filtered_epsilon
from carefl_secure.privacy.ledger.entry import split_runs
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

LIMIT = 7.0


REQUEST = PlanRequest(
    unit="record",
    dimension=60,
    clients=6,
    rounds=2,
    public_records=240,
    sample_rate=0.1,
    clipping_norm=1.0,
    delta=1e-5,
    target_epsilon=5.0,
)


def planned(**other: Any) -> RunPlan:
    return plan_run(REQUEST, **other)


def test_two_runs_stay_within_the_limit_over_both(tmp_path: Path, tasks_toy: Any) -> None:
    books = tmp_path / "ledgers"
    assert earlier_spends(books, 6) == {((), ())}
    first = planned(limit=LIMIT, earlier=earlier_spends(books, 6))
    assert first.noise_multiplier == planned().noise_multiplier  # nothing was spent before

    def run(plan: RunPlan, name: str) -> None:
        result = federate(
            plan,
            tasks_toy(6),
            np.zeros(plan.encoding.dimension, np.float32),
            optimizer=FedAvg(0.1),
            folder=RunFolder.create(tmp_path / "runs", "", name),
            base_hash=bytes(32),
            ledgers=books,
            max_epsilon=LIMIT,
        )
        assert len(result.rows) == 2

    run(first, "one")
    earlier = earlier_spends(books, 6)
    assert earlier == {((first.event.times(2),), ())} if first.event else False
    second = planned(limit=LIMIT, earlier=earlier)
    assert second.noise_multiplier > first.noise_multiplier  # the rest is less than its target
    run(second, "two")  # no client refuses in the middle
    for index in range(6):
        ledger = Ledger(books / f"{index}.jsonl")
        # runs may depend on earlier ones: the filter is used up, plain composition is below it
        counted = filtered_epsilon(*split_runs(ledger.entries()), LIMIT, 1e-5)
        assert 0.99 * LIMIT < counted <= LIMIT
        assert 0.7 * LIMIT < epsilon(ledger.events(), 1e-5) < LIMIT
    # resuming the second run must find the plan that it was begun with
    assert earlier_spends(books, 6, "two") == earlier
    with pytest.raises(BudgetExceededError, match=r"is left.*max_epsilon"):
        planned(limit=LIMIT, earlier=earlier_spends(books, 6))


def test_a_limit_that_leaves_more_than_the_target_adds_no_noise() -> None:
    plan = planned()
    assert plan.event is not None
    earlier = frozenset({((plan.event,), ())})
    assert planned(limit=50.0, earlier=earlier).noise_multiplier == plan.noise_multiplier


def test_rounds_without_noise_leave_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "0.jsonl", {"client": "0"}).append("note", {"run": "x", "unprotected": True})
    with pytest.raises(BudgetExceededError, match="without any noise"):
        earlier_spends(tmp_path, 1)
    assert earlier_spends(tmp_path, 1, "x") == {((), ())}
