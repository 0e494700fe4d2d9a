"""A toy federation: clients whose per-record gradients are fixed unit vectors."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAdam, FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.server.strategy import SecureSumStrategy
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import pack_adapter
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate, in_process

CLIENTS = 7  # floor 5 without colluders: two may go
PEERS = ["query.advertise", "query.share", "train.masked", "query.sign", "query.unmask"]


def losing(action: str, nodes: set[int], replies: bool = True) -> Callable[[int, Message], bool]:
    """Return what drops one kind of message to, or of, some parties."""

    def drop(node: int, message: Message) -> bool:
        meta = message.metadata
        lost = bool(meta.reply_to_message_id) == replies
        return node - FIRST_NODE in nodes and meta.message_type == action and lost

    return drop


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
        self, rounds: int = 1, drop: Callable[[int, Message], bool] | None = None, workers: int = 1, **options: Any
    ) -> NDArray[np.float32]:
        """Run some rounds of plain descent with step 1 and return the adapter."""
        app = build_client_app(self.clients.session, self.clients.keep_refusal, helpers=self.clients.helper)
        return self._descend(app, rounds, workers, drop, **options)

    def start_afresh(self, rounds: int) -> NDArray[np.float32]:
        """Do the same with a new session for every message.

        Engines that start a process per message keep the session in the node's context.
        """
        app = build_client_app(self.fresh_session, keep_state=True, helpers=self.clients.helper)
        return self._descend(app, rounds)

    def fresh_session(self, index: int) -> ClientSession:
        """Return a client as a new process finds it: its own identity and ledger, no memory."""
        made = self.clients
        setup = dataclasses.replace(made.session(index)._rounds._setup, keys=SystemKeySource())
        return ClientSession(setup, self.tasks[index], made.ledgers[index])

    def _descend(
        self,
        app: Any,
        rounds: int,
        workers: int = 1,
        drop: Callable[[int, Message], bool] | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        strategy = SecureSumStrategy(
            self.plan,
            self.clients.cohort,
            self.ledger,
            FedAvg(1.0),
            on_round=lambda row, adapter: (self.rows.append(row), self.adapters.append(adapter)),
            **options,
        )
        grid = LocalGrid(
            app,
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
    return plan_run(PlanRequest(**settings))


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
        aggregation: Aggregation = "pairwise",
        members: int = 3,
        key_prefetch: bool = True,
        **changes: Any,
    ) -> Bench:
        plan = known_plan(clients, dimension, **changes)
        tasks = toy_tasks(clients, dimension, records) if tasks is None else tasks
        folder = RunFolder.create(tmp_path, "toy: true\n")
        everyone = in_process(
            plan,
            tasks,
            folder,
            key_source=key_source,
            ledgers=ledgers,
            max_epsilon=max_epsilon,
            aggregation=aggregation,
            committee_members=members,
            key_prefetch=key_prefetch,
        )
        return Bench(plan, tasks, folder, everyone, Ledger(folder.ledger))

    return make


class Runs:
    """Whole runs of one plan in a folder each."""

    class Notes(SilentReporter):
        """Remembers what the user is shown."""

        def __init__(self) -> None:
            self.said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    def __init__(self, home: Path, plan: RunPlan) -> None:
        self.home, self.plan = home, plan
        self.reporter = self.Notes()

    def go(self, mode: Aggregation, folder: RunFolder | None = None, **options: Any) -> FederationResult:
        """Run all rounds, in a fresh folder by default."""
        dimension = self.plan.encoding.dimension
        return federate(
            self.plan,
            toy_tasks(CLIENTS, dimension),
            np.zeros(dimension, np.float32),
            optimizer=FedAdam(0.1),
            folder=folder or RunFolder.create(self.home, ""),
            base_hash=bytes(32),
            aggregation=mode,
            reporter=self.reporter,
            **options,
        )


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Return a maker of runs of seven clients without colluders, two rounds each."""
    return Runs(tmp_path, known_plan(CLIENTS, max_colluders=0, rounds=2))


@pytest.fixture
def opened_words(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """Have clients send short words of any size whose sum wraps; return the sums as opened."""
    from carefl_secure.federation.server import strategy

    sums: list[NDArray[Any]] = []
    opening = strategy.decode

    def decode(total: NDArray[Any], *rest: Any) -> Any:
        sums.append(total.copy())
        return opening(total, *rest)

    def protected(session: ClientSession, adapter: Any) -> NDArray[np.uint16]:
        rng = np.random.default_rng(session.index)
        words = rng.integers(0, 2**16, session._plan.encoding.padded, dtype=np.uint16)
        words[0], words[1] = 2**15, 2**15 - 1
        return words

    monkeypatch.setattr(strategy, "decode", decode)
    monkeypatch.setattr(ClientSession, "_protected", protected)
    return sums


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the embedded shape: fast, and enough where nothing is to be learnt."""
    from carefl_secure.model.embedded import build_model, build_processor  # torch, which is slow

    folder = tmp_path_factory.mktemp("base")
    processor = build_processor()
    build_model(processor, seed=3).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def train_small(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of finished runs of one round; settings by name, ``data__records=200``."""
    from carefl_secure.config import load_config
    from carefl_secure.runs.train import train

    def make(**changes: Any) -> Path:
        root = tmp_path_factory.mktemp("trained")
        settings = {
            "model.base": base,
            "model.quantization": "none",
            "data.cache_dir": root / "cache",
            "data.records": 160,
            "run.dir": root / "runs",
            "federation.rounds": 1,
            "federation.clients": 4,
            "federation.min_survivors": 3,
            "privacy.delta": 0.001,
            "adapter.rank": 2,
            "evaluation.baselines": "false",
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        config = load_config(None, [f"{name}={value}" for name, value in settings.items()])
        return train(config, SilentReporter()).folder

    return make


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the module's finished run, to be written into."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.fixture
def plan_toy() -> Callable[..., RunPlan]:
    """Return the maker of toy plans."""
    return toy_plan


@pytest.fixture
def tasks_toy() -> Callable[..., list[ToyTask]]:
    """Return the maker of toy tasks."""
    return toy_tasks
