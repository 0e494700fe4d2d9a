"""The seam between a run's rounds and where its parties live: this process, or a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flwr.serverapp import Grid

from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.privacy import Ledger

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
        """Return the grid that reaches all parties; they have agreed to the run then.

        Raises ConfigError when the engine cannot honour ``workers`` or ``drop``.
        """

    def finish(self) -> None:
        """End a run whose rounds are all done.

        Raises EngineError when the engine reports another status than success.
        """

    def close(self) -> None:
        """Erase secrets and stop whatever was started, after success or failure alike."""


class Engine(Protocol):
    """Starts the parties of a run."""

    def start(self, spec: RunSpec) -> Parties:
        """Return the parties; ConfigError when the engine cannot honour the specification."""
