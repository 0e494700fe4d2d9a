"""Runs and their parties from a line of keywords, for tests that vary one setting at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import Engine, PerformanceFlags, RunSpec, Simulation
from carefl_secure.federation.server.optimizers import ServerOptimizer
from carefl_secure.federation.server.run import FederationResult, Monitoring, run_federation
from carefl_secure.run_folder import RunFolder

_AGGREGATION = {
    "aggregation": "protocol",
    "own_helpers": "own_helpers",
    "committee_members": "members",
    "committee_dropout_tolerance": "dropout_tolerance",
    "key_prefetch": "prefetch",
}
_MONITORING = ("evaluate", "evaluate_every", "reporter", "follow", "record")


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options.pop(name) for name in names if name in options}


def run_spec(plan: RunPlan, tasks: Sequence[LocalTask], folder: RunFolder, options: dict[str, Any]) -> RunSpec:
    """Return a specification; what it takes of the options is gone from them then."""
    found = _taken(options, *_AGGREGATION)
    aggregation = AggregationConfig(**{_AGGREGATION[name]: each for name, each in found.items()})
    rest = _taken(options, "key_source", "ledgers", "max_epsilon", "stage")
    base_hash = options.pop("base_hash", bytes(32))
    return RunSpec(
        stage=Stage.only(plan),
        tasks=lambda: tasks,
        folder=folder,
        base_hash=base_hash,
        aggregation=aggregation,
        **rest,
    )


def federate(
    plan: RunPlan,
    tasks: Sequence[LocalTask],
    initial: Any,
    *,
    optimizer: ServerOptimizer,
    folder: RunFolder,
    engine: Engine | None = None,
    resume: bool = False,
    **options: Any,
) -> FederationResult:
    """Run a federation; the options are fields of a specification and of what goes with it."""
    spec = run_spec(plan, tasks, folder, options)
    watching = _taken(options, *_MONITORING)
    monitoring = Monitoring(**{k: v for k, v in watching.items() if v is not None})
    simulation = Simulation(**_taken(options, "dropout", "seed"))
    performance = PerformanceFlags(**_taken(options, "workers", "timeout"))
    assert not options, options
    return run_federation(
        spec,
        initial,
        optimizer,
        engine=engine,
        monitoring=monitoring,
        simulation=simulation,
        performance=performance,
        resume=resume,
    )


def in_process(plan: RunPlan, tasks: Sequence[LocalTask], folder: RunFolder, **options: Any) -> Clients:
    """Return the parties of a run in this process."""
    parties = Clients(run_spec(plan, tasks, folder, options))
    assert not options, options
    return parties
