"""The seam between a run's rounds and where its parties live: this process, or a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from flwr.serverapp import Grid

from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import Aggregation, Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.noise import KeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder

__all__ = ["Engine", "Parties"]


class Parties(Protocol):
    """All clients and helpers of one run, wherever they are."""

    @property
    def cohort(self) -> Cohort:
        """Who takes part."""

    @property
    def ledgers(self) -> Sequence[Ledger]:
        """Ledgers of those clients that live on this machine."""

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Return the grid that reaches all parties; they have agreed to the run then."""

    def finish(self) -> None:
        """End a run whose rounds are all done.

        Raises
        ------
        EngineError
            When the engine reports another status than success.
        """

    def close(self) -> None:
        """Erase secrets and stop whatever was started, after success or failure alike."""


class Engine(Protocol):
    """Makes the parties of a run."""

    def __call__(
        self,
        plan: RunPlan,
        tasks: Sequence[LocalTask],
        folder: RunFolder,
        base_hash: bytes,
        key_source: Callable[[int], KeySource],
        ledgers: Path | None,
        max_epsilon: float | None,
        *,
        aggregation: Aggregation,
        committee_members: int,
        committee_dropout_tolerance: int,
        key_prefetch: bool,
    ) -> Parties:
        """Return the parties; see `run_federation` for the parameters."""
