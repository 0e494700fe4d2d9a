"""A toy federation: clients whose per-record gradients are fixed unit vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from carefl_secure.federation.client import build_client_app
from carefl_secure.federation.cohort import Aggregation, Encryption
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.grid import LocalGrid
from carefl_secure.federation.messages import pack_adapter
from carefl_secure.federation.optim import FedAvg
from carefl_secure.federation.planning import RunPlan, plan_run
from carefl_secure.federation.simulation import Clients
from carefl_secure.federation.strategy import SecureSumStrategy
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger


class ToyTask:
    """Records with a fixed gradient each; remembers every call."""

    def __init__(self, gradients: NDArray[np.float64]) -> None:
        self.gradients = gradients
        self.calls: list[NDArray[np.int64]] = []

    @property
    def dimension(self) -> int:
        return self.gradients.shape[1]

    @property
    def records(self) -> int:
        return len(self.gradients)

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1
    ) -> NDArray[np.float64]:
        self.calls.append(indices)
        total: NDArray[np.float64] = self.gradients[indices].sum(axis=0)
        return total


@dataclass
class Bench:
    """One federation on a local grid, ready to be started, with everything the server saw."""

    plan: RunPlan
    tasks: list[ToyTask]
    folder: RunFolder
    clients: Clients
    ledger: Ledger
    rows: list[dict[str, Any]] = field(default_factory=list)
    adapters: list[NDArray[np.float32]] = field(default_factory=list)
    seen: list[tuple[int, Message]] = field(default_factory=list)

    def start(
        self,
        rounds: int = 1,
        drop: Callable[[int, Message], bool] | None = None,
        workers: int = 1,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Run some rounds of plain descent with step 1 and return the adapter."""
        strategy = SecureSumStrategy(
            self.plan,
            self.clients.cohort,
            self.ledger,
            FedAvg(1.0),
            on_round=lambda row, adapter: (self.rows.append(row), self.adapters.append(adapter)),
            **options,
        )
        grid = LocalGrid(
            build_client_app(
                self.clients.session, self.clients.keep_refusal, helpers=self.clients.helper
            ),
            self.clients.nodes,
            workers=workers,
            drop=drop,
            record=lambda node, message: self.seen.append((node, message)),
        )
        zeros = np.zeros(self.plan.encoding.dimension, np.float32)
        result = strategy.start(grid, pack_adapter(zeros), num_rounds=rounds)
        return result.arrays["adapter"].numpy()

    def client_spends(self) -> list[int]:
        """Return the number of spends in every client's ledger."""
        return [len(ledger.events()) for ledger in self.clients.ledgers]

    def server_spends(self) -> int:
        """Return the number of spends in the server's ledger."""
        return len(self.ledger.events())

    def releases(self) -> int:
        """Return the number of opened rounds in the server's ledger."""
        return sum(entry.kind == "release" for entry in self.ledger.entries())


def toy_tasks(clients: int, dimension: int = 60, records: int = 30) -> list[ToyTask]:
    rng = np.random.default_rng(7)
    tasks = []
    for _ in range(clients):
        gradients = rng.normal(size=(records, dimension))
        lengths = np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-12)
        tasks.append(ToyTask(gradients / lengths))
    return tasks


def toy_plan(clients: int = 6, dimension: int = 60, **changes: Any) -> RunPlan:
    settings: dict[str, Any] = {
        "unit": "record",
        "dimension": dimension,
        "clients": clients,
        "rounds": 3,
        "public_records": 30 * clients,
        "sample_rate": 0.5,
        "clipping_norm": 1.0,
        "delta": 1e-5,
        "target_epsilon": 8.0,
    }
    settings.update(changes)
    if settings["unit"] == "none":
        settings["target_epsilon"] = None
    return plan_run(**settings)


known_plan = functools.cache(toy_plan)  # a plan is frozen, and its noise takes a while to find


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of benches: ``make_bench(clients=6, dimension=60, records=30, ...)``."""

    def make(
        clients: int = 6,
        dimension: int = 60,
        records: int = 30,
        *,
        tasks: list[ToyTask] | None = None,
        key_source: Callable[[int], KeySource] = lambda index: SystemKeySource(),
        ledgers: Path | None = None,
        max_epsilon: float | None = None,
        aggregation: Aggregation = "peer",
        members: int = 3,
        encryption: Encryption = "bfv",
        **changes: Any,
    ) -> Bench:
        plan = known_plan(clients, dimension, **changes)
        tasks = toy_tasks(clients, dimension, records) if tasks is None else tasks
        folder = RunFolder.create(tmp_path, "toy: true\n")
        everyone = Clients(
            plan,
            tasks,
            folder,
            bytes(32),
            key_source,
            ledgers,
            max_epsilon,
            aggregation=aggregation,
            committee_members=members,
            encryption=encryption,
        )
        return Bench(plan, tasks, folder, everyone, Ledger(folder.ledger))

    return make


@pytest.fixture
def plan_toy() -> Callable[..., RunPlan]:
    """Return the maker of toy plans."""
    return toy_plan


@pytest.fixture
def tasks_toy() -> Callable[..., list[ToyTask]]:
    """Return the maker of toy tasks."""
    return toy_tasks
