"""Client ledgers that outlive a run: the next run composes with them, under the client's policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import BudgetExceededError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.privacy import Ledger, SampledSkellam, epsilon
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

PlanToy = Callable[..., RunPlan]
TasksToy = Callable[..., list[Any]]
POLICY = 9.0


@pytest.fixture
def run(tmp_path: Path, tasks_toy: TasksToy) -> Callable[..., FederationResult]:
    def start(plan: RunPlan, name: str, **options: Any) -> FederationResult:
        return federate(
            plan,
            tasks_toy(6),
            np.zeros(plan.encoding.dimension, np.float32),
            optimizer=FedAvg(0.1),
            folder=RunFolder.create(tmp_path / "runs", "", name),
            base_hash=bytes(32),
            ledgers=tmp_path / "ledgers",
            **options,
        )

    return start


def events(tmp_path: Path, client: int) -> list[Any]:
    return Ledger(tmp_path / "ledgers" / f"{client}.jsonl").events()


def test_a_second_run_composes_with_the_first(
    tmp_path: Path, plan_toy: PlanToy, run: Callable[..., FederationResult]
) -> None:
    first = plan_toy(6, rounds=3, target_epsilon=4.0)
    second = plan_toy(6, rounds=2, target_epsilon=5.0, sample_rate=0.3)
    run(first, "one", max_epsilon=POLICY)
    result = run(second, "two", max_epsilon=POLICY)
    assert len(result.rows) == 2
    assert result.epsilon <= 5.0  # the server's ledger is the run's own
    whole = [first.event] * 3 + [second.event] * 2
    for client in range(6):
        held = events(tmp_path, client)
        assert held == whole
        assert all(isinstance(event, SampledSkellam) for event in held)
        price = epsilon(held, 1e-5)
        assert max(4.0, 5.0) < price < 9.0, "less than the sum, more than either"
    runs = [e.payload["run"] for e in Ledger(tmp_path / "ledgers" / "0.jsonl").entries()[1:]]
    assert runs == ["one"] * 3 + ["two"] * 2


def test_a_run_that_would_go_over_a_clients_own_policy_is_refused_there(
    tmp_path: Path, plan_toy: PlanToy, run: Callable[..., FederationResult]
) -> None:
    plan, policy = plan_toy(6, rounds=4, target_epsilon=8.0), 12.0
    run(plan, "one", max_epsilon=policy)
    with pytest.raises(BudgetExceededError, match="node"):
        run(plan, "two", max_epsilon=policy)
    assert plan.event is not None
    fits = 7  # the filter's, which is less than what composition alone would allow
    assert fits < max(n for n in range(4, 13) if epsilon([plan.event] * n, 1e-5) <= policy)
    for client in range(6):
        assert len(events(tmp_path, client)) <= fits
        assert epsilon(events(tmp_path, client), 1e-5) <= policy
    opened = Ledger(tmp_path / "runs" / "two" / "ledger.jsonl")
    assert sum(entry.kind == "release" for entry in opened.entries()) == fits - 4


def test_without_a_policy_of_its_own_a_client_takes_the_plans_target(
    tmp_path: Path, plan_toy: PlanToy, run: Callable[..., FederationResult]
) -> None:
    plan = plan_toy(6, rounds=3, target_epsilon=8.0)
    run(plan, "one")
    with pytest.raises(BudgetExceededError):
        run(plan, "two")
    assert all(len(events(tmp_path, client)) == 3 for client in range(6))


def test_a_ledger_of_another_client_is_refused(
    tmp_path: Path, plan_toy: PlanToy, run: Callable[..., FederationResult]
) -> None:
    plan = plan_toy(6, rounds=2)
    run(plan, "one", max_epsilon=50.0)
    folder = tmp_path / "ledgers"
    wrong = (folder / "0.jsonl").read_bytes()
    (folder / "1.jsonl").write_bytes(wrong)
    result = run(plan, "two", max_epsilon=50.0)
    assert {row["survivors"] for row in result.rows} == {5}  # client 1 takes no part
    assert (folder / "1.jsonl").read_bytes() == wrong
