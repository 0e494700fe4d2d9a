"""What an engine needs to start the parties of a run, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flwr.serverapp import Grid

from carefl_secure.errors import ConfigError
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import AggregationConfig, Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder

TaskFactory = Callable[[], Sequence[LocalTask]]
"""Makes one task for each client; an engine whose clients live elsewhere never calls it."""


def system_keys(index: int) -> KeySource:
    """Return the operating system's entropy, for every client."""
    return SystemKeySource()


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that an engine needs to start the parties of a run.

    Parameters
    ----------
    stage : Stage
        Which stage of which agreed plan this is; one after the first goes on in a folder and in ledgers used before.
    tasks : callable() -> sequence of LocalTask
        Makes the clients' work. Engines whose clients live elsewhere never call it.
    base_hash : bytes
        32 bytes over the frozen base model and what else all parties share.
    key_source : callable(int) -> KeySource
        Keys of a client; the operating system's entropy by default. Anything else makes noise and masks predictable.
    ledgers : Path, optional
        Folder of client ledgers that outlive the run, ``<index>.jsonl`` each.
    max_epsilon : float, optional
        The clients' own limit over all runs in their ledgers; the plan's target by default.
    server_lr : float, optional
        The server's learning rate where it was chosen before the first round; it belongs to what sites sign.
    """

    stage: Stage
    tasks: TaskFactory
    folder: RunFolder
    base_hash: bytes
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    key_source: Callable[[int], KeySource] = system_keys
    ledgers: Path | None = None
    max_epsilon: float | None = None
    server_lr: float | None = None

    @property
    def plan(self) -> RunPlan:
        """The plan of this stage."""
        return self.stage.plan

    def make_tasks(self) -> Sequence[LocalTask]:
        """Make the tasks; ConfigError unless there is one for each client."""
        tasks, clients = self.tasks(), self.plan.privacy.clients
        if len(tasks) != clients:
            raise ConfigError(f"{len(tasks)} tasks for {clients} clients; give one each")
        return tasks


@dataclass(frozen=True)
class Simulation:
    """A simulated situation: the share of clients, in [0, 1), that ``seed`` lets drop out of a round; no promise."""

    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class PerformanceFlags:
    """What changes time and memory and no result.

    ``workers`` clients work at the same time, where one machine runs them all; ``timeout`` is the
    seconds a party on a network has to answer a message before it counts as dropped out.
    """

    workers: int = 1
    timeout: float = 3600.0


class Parties(Protocol):
    """All clients and helpers of one run, wherever they are."""

    @property
    def cohort(self) -> Cohort:
        """Who takes part."""

    @property
    def ledgers(self) -> Sequence[Ledger]:
        """Ledgers of those clients that live on this machine."""

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Return the grid to all parties, who agreed; ConfigError when it cannot honour ``workers`` or ``drop``."""

    def finish(self) -> None:
        """End a run whose rounds are all done; EngineError when the engine reports another status than success."""

    def close(self) -> None:
        """Erase secrets and stop whatever was started, after success or failure alike."""


class Engine(Protocol):
    """Starts the parties of a run."""

    def start(self, spec: RunSpec) -> Parties:
        """Return the parties; ConfigError when the engine cannot honour the specification."""
