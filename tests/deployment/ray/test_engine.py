"""Flower's simulation on Ray: the same app, strategy and files, with clients that move about."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import importlib.util
import ipaddress
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from carefl_secure.config import load_config
from carefl_secure.deployment.engines import choose_engine
from carefl_secure.deployment.ray import actor as ray_actor
from carefl_secure.deployment.ray import engine as ray_engine
from carefl_secure.deployment.ray.actor import ActorApp
from carefl_secure.deployment.ray.cluster import RayCluster, network_settings, set_environment
from carefl_secure.deployment.ray.engine import RayEngine, RayParties
from carefl_secure.deployment.ray.grid import RayGrid
from carefl_secure.errors import BudgetExceededError, CohortError, ConfigError, EngineError, ModelError, ProtocolError
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.flower_internals import TESTED_FLOWER
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate, run_spec
from tests.support.sites import PushGrid

CLIENTS = 5
Plans = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Import Ray as the engine would, because some tests here reach for it without a cluster."""
    restore = set_environment(network_settings())
    try:
        importlib.import_module("ray")
    finally:
        restore()


class Steady:
    """A client's records: a fixed unit vector each."""

    records = 20

    def __init__(self, index: int, dimension: int = 60) -> None:
        self.index, self.dimension = index, dimension

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        total = np.zeros(self.dimension)
        np.add.at(total, (indices + 7 * self.index) % self.dimension, 1.0)
        return total


class Broken(Steady):
    """A program fault, of the kind that would look like a lost client if it were hidden."""

    def clipped_sum(self, *words: Any) -> NDArray[np.float64]:
        raise NameError("a fault that holds a value of 4711")


class Dying(Steady):
    """An actor that the system ends, as it does where memory runs out."""

    def clipped_sum(self, *words: Any) -> NDArray[np.float64]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"ray %d" % index)


def steady(count: int) -> list[Steady]:
    return [Steady(i) for i in range(count)]


def by_value(tasks: Sequence[Steady]) -> Any:
    """Return work whose classes an actor need not import: it cannot see the tests."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return functools.partial(lambda given, plan, base_hash: given, list(tasks))


class Runs:
    """Whole runs of one plan, in a folder each."""

    def __init__(self, home: Path, plan: Any) -> None:
        self.home, self.plan = home, plan

    def folder(self) -> RunFolder:
        return RunFolder.create(self.home, "toy: true\n")

    def go(self, engine: Any = None, folder: RunFolder | None = None, **options: Any) -> Any:
        count = self.plan.privacy.clients
        return federate(
            self.plan,
            steady(count),
            np.zeros(60, np.float32),
            **{
                "optimizer": FedAdam(0.1),
                "folder": folder or self.folder(),
                "base_hash": bytes(32),
                "engine": engine,
                "key_source": keys,
                **options,
            },
        )


@pytest.fixture
def runs(tmp_path: Path, plan_toy: Plans) -> Runs:
    return Runs(tmp_path, plan_toy(CLIENTS, public_records=20 * CLIENTS, max_colluders=0, rounds=2))


def spends(folder: RunFolder) -> list[list[Any]]:
    paths = [folder.client_ledger(i) for i in range(CLIENTS)]
    return [[event.to_json() for event in Ledger(path).events()] for path in paths]


def same(found: FederationResult, wanted: FederationResult) -> None:
    np.testing.assert_array_equal(found.adapter, wanted.adapter)
    assert np.count_nonzero(found.adapter) == found.adapter.size
    assert found.epsilon == wanted.epsilon
    for ours, theirs in zip(found.rows, wanted.rows, strict=True):
        # a ciphertext's length depends on its randomness
        for way in ("bytes_up", "bytes_down"):
            assert ours[way] == pytest.approx(theirs[way], rel=0.01)
        varying = dict.fromkeys(("seconds", "bytes_up", "bytes_down"), 0)
        assert {**ours, **varying} == {**theirs, **varying}


def processes(home: Path) -> Iterator[Path]:
    """Yield all processes that work in a folder, this one too; not those that only await burial."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(home) and (entry / "cmdline").read_bytes():
                yield entry
        except OSError:
            continue


def left_behind(home: Path) -> list[str]:
    """Return the command lines of all other processes that work in a folder."""
    found = []
    for entry in processes(home):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def gone(home: Path) -> bool:
    """Tell whether no process is left, a moment after the end at the latest."""
    end = time.monotonic() + 20
    while left_behind(home) and time.monotonic() < end:
        time.sleep(0.2)
    return not left_behind(home)


# Without Ray: every message meets an actor that has never served anybody.


class Moving(ActorApp):
    """An app whose every message goes to a new actor, through bytes."""

    def __call__(self, message: Message, context: Context) -> Message:
        ray_actor._clients_of.cache_clear()
        theirs: Context = pickle.loads(pickle.dumps(context))
        reply = super().__call__(pickle.loads(pickle.dumps(message)), theirs)
        context.state = pickle.loads(pickle.dumps(theirs.state))
        return reply


class FakeFlower:
    """What `FlowerSimulation` lends, in this process."""

    ended = True

    def __init__(self, app: ActorApp, clients: int) -> None:
        self.far = PushGrid(Moving(app._order), clients)

    def grid(self) -> Grid:
        return self.far

    def check(self) -> None:
        raise EngineError("the simulation is over")

    def finish(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    here = Path.cwd()
    monkeypatch.setattr(ray_engine, "FlowerSimulation", FakeFlower)
    monkeypatch.setattr(RayCluster, "start", lambda *_: None)
    yield
    ray_actor._clients_of.cache_clear()
    os.chdir(here)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    "way",
    [{"aggregation": "pairwise"}, {"aggregation": "committee"}, {"aggregation": "encrypted"}],
    ids=lambda way: way["aggregation"],
)
def test_sessions_move_from_actor_to_actor_in_every_way_of_summing(runs: Runs, way: dict[str, Any]) -> None:
    near, far = runs.folder(), runs.folder()
    wanted = runs.go(folder=near, **way)
    same(runs.go(RayEngine(SilentReporter()), far, **way), wanted)
    assert spends(far) == spends(near)
    assert not list(far.path.rglob("order"))


@pytest.mark.usefixtures("no_ray")
def test_hooks_see_and_lose_what_they_do_in_one_process(runs: Runs) -> None:
    def seen(engine: Any) -> tuple[list[tuple[int, str, bool]], FederationResult]:
        found: list[tuple[int, str, bool]] = []

        def record(node: int, message: Message) -> None:
            meta = message.metadata
            found.append((node, meta.message_type, bool(meta.reply_to_message_id)))

        options = {"record": record, "dropout": 0.2, "seed": 4, "aggregation": "committee"}
        return found, runs.go(engine, **options)

    (near, wanted), (far, result) = seen(None), seen(RayEngine(SilentReporter()))
    same(result, wanted)
    assert [row["survivors"] for row in result.rows] == [4, 4]
    helpers = {FIRST_NODE + CLIENTS + i for i in range(3)}
    assert helpers < {node for node, _, _ in far}
    assert sorted(near) == sorted(far)


@pytest.fixture
def parties(runs: Runs, no_ray: None) -> Iterator[RayParties]:
    options = {"key_source": keys}
    made = RayEngine(SilentReporter()).start(run_spec(runs.plan, steady(CLIENTS), runs.folder(), options))
    yield made
    made.close()


def test_a_session_that_is_not_the_newest_is_not_answered(parties: RayParties) -> None:
    from carefl_secure.federation.transport.messages import pack

    grid = parties.grid(1, None, None)
    assert isinstance(grid, RayGrid)
    far = grid._far
    assert isinstance(far, LocalGrid)
    context = far._contexts[FIRST_NODE]
    hello = pack(round=1, plan=parties._order.spec.plan.hash())
    old = copy.deepcopy(context.state)

    def ask() -> Message:
        (reply,) = far.send_and_receive([Message(hello, FIRST_NODE, "query.advertise")])
        return reply

    assert not ask().has_error()
    newest = context.state
    context.state = old
    assert ask().error.code == 1000 + ProtocolError.exit_code
    assert "not the newest" not in ask().error.reason  # its own log says so
    context.state = newest
    assert ask().error.code == 1000 + ProtocolError.exit_code  # a round is not repeated either
    refusals = parties._order.spec.folder.client(0) / "refusals.log"
    assert "a round is never repeated" in refusals.read_text()


def test_nothing_of_a_run_is_readable_by_others_or_stays(parties: RayParties) -> None:
    parties.grid(1, None, None)
    assert parties._cluster is not None
    scratch = parties._cluster.scratch
    assert (scratch / "order").stat().st_mode & 0o777 == 0o600
    assert scratch.stat().st_mode & 0o777 == 0o700
    parties.close()
    assert not scratch.exists()


def test_the_parent_makes_no_tasks_where_actors_do(runs: Runs) -> None:
    def unwanted() -> Any:
        raise AssertionError("the parent made the tasks of its actors")

    spec = run_spec(runs.plan, [], runs.folder(), {})
    engine = RayEngine(SilentReporter(), lambda plan, base_hash: steady(CLIENTS))
    engine.start(dataclasses.replace(spec, tasks=unwanted)).close()


@pytest.mark.usefixtures("no_ray")
def test_a_fault_is_named_in_the_log_and_ends_the_run(runs: Runs) -> None:
    folder = runs.folder()
    tasks: list[Steady] = [*steady(CLIENTS - 1), Broken(CLIENTS - 1)]
    with pytest.raises(EngineError, match=r"not a dropout.*ray\.log") as caught:
        runs.go(RayEngine(SilentReporter(), lambda plan, base_hash: tasks), folder)
    assert "4711" not in str(caught.value)
    assert "4711" in (folder.path / "logs" / "ray.log").read_text()


@pytest.mark.usefixtures("no_ray")
def test_refusals_keep_their_class(runs: Runs, tmp_path: Path) -> None:
    ledgers = tmp_path / "accounts"
    options = {"ledgers": ledgers, "max_epsilon": 8.0}
    runs.go(RayEngine(SilentReporter()), **options)
    with pytest.raises(BudgetExceededError, match="client's ledger"):
        runs.go(RayEngine(SilentReporter()), **options)
    with pytest.raises(ConfigError):
        runs.go(RayEngine(SilentReporter(), lambda plan, base_hash: steady(2)))
    with pytest.raises(EngineError, match="cannot be sent to actors"):
        runs.go(RayEngine(SilentReporter(), functools.partial(print, threading.Lock())))


@pytest.mark.usefixtures("no_ray")
def test_a_stopped_run_goes_on(runs: Runs) -> None:
    def stop(node: int, message: Message) -> None:
        if message.metadata.group_id == "2" and message.metadata.message_type == "train.masked":
            raise KeyboardInterrupt

    folder = runs.folder()
    with pytest.raises(KeyboardInterrupt):
        runs.go(RayEngine(SilentReporter()), folder, record=stop)
    assert [row["round"] for row in folder.read_metrics()] == [1]
    result = runs.go(RayEngine(SilentReporter()), folder, resume=True, key_source=keys)
    assert [row["round"] for row in result.rows] == [1]  # the second round was paid for and lost
    assert result.epsilon <= 8


def test_ray_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("ray") is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r'pip install "carefl-secure\[ray\]"'):
        choose_engine("ray")


def test_importing_the_engine_leaves_the_environment_alone() -> None:
    script = (
        "import os; before = dict(os.environ)\n"
        "import carefl_secure.deployment.ray.engine\n"
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", script], timeout=120, check=True)


def test_a_ray_that_was_imported_before_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    before = dict(os.environ)
    cluster = RayCluster()
    try:
        with pytest.raises(EngineError, match="beyond the loopback"):
            network_settings.__wrapped__()
    finally:
        cluster.stop()
    assert dict(os.environ) == before


def test_the_versions_are_those_that_were_tried() -> None:
    import flwr

    assert flwr.__version__.rpartition(".")[0] in TESTED_FLOWER  # run_simulation is deprecated


# With Ray.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, so that whatever is started can be distinguished from others."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ray_gives_the_adapter_of_one_process_and_leaves_nothing(runs: Runs, home: Path) -> None:
    near, far = runs.folder(), runs.folder()
    options = {"dropout": 0.2, "seed": 4}
    wanted = runs.go(folder=near, **options)
    listening: set[str] = set()
    others: list[str] = []

    def record(node: int, message: Message) -> None:
        if not others:
            others.extend(left_behind(home))
            listening.update(addresses(home))

    engine = RayEngine(SilentReporter(), by_value(steady(CLIENTS)))
    before = dict(os.environ)
    same(runs.go(engine, far, workers=2, record=record, **options), wanted)
    assert spends(far) == spends(near)
    assert any("raylet" in line for line in others)
    assert listening == {"127.0.0.1"}
    assert gone(home)
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_")} == {
        name: value for name, value in before.items() if name.startswith("RAY_")
    }


def addresses(home: Path) -> set[str]:
    """Return the addresses that the processes working in a folder listen on."""
    sockets = set()
    for entry in processes(home):
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(link) for link in (entry / "fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:  # 0A: it listens
                raw = bytes.fromhex(words[1].partition(":")[0])
                raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                address = ipaddress.ip_address(raw)
                found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return found


@pytest.mark.slow
def test_an_actor_that_dies_ends_the_run(runs: Runs, home: Path) -> None:
    tasks: list[Steady] = [*steady(CLIENTS - 1), Dying(CLIENTS - 1)]
    with pytest.raises(EngineError, match="fault, not a dropout"):
        runs.go(RayEngine(SilentReporter(), by_value(tasks)))
    assert gone(home)


@pytest.mark.slow
def test_helpers_and_an_early_end_on_ray(runs: Runs, home: Path) -> None:
    engine = RayEngine(SilentReporter(), by_value(steady(CLIENTS)))
    same(runs.go(engine, aggregation="committee"), runs.go(aggregation="committee"))

    def lose(node: int, message: Message) -> None:
        raise CohortError("stop here")

    with pytest.raises(CohortError):
        runs.go(engine, record=lose)
    assert gone(home)


WORDS = ("data.records=300", "simulation.dropout=0", "evaluation.baselines=false", "privacy.delta=1e-4")


def command(*more: str) -> list[str]:
    train = [sys.executable, "-c", "from carefl_secure.cli import main; main()", "train", "--quiet"]
    return [*train, *more]


def fresh(name: str, *more: str) -> list[str]:
    sets = [word for one in (*WORDS, f"run.name={name}") for word in ("--set", one)]
    return [*sets, "--run-dir", ".", "--clients", "3", *more]


@pytest.mark.slow
def test_a_configuration_gives_the_same_adapter_on_ray(tmp_path: Path) -> None:
    unsafe = ("--set", "unsafe_deterministic_noise=true", "--set", "federation.rounds=2")
    for name, more in (("near", ()), ("far", ("--engine", "ray"))):
        words = command(*fresh(name, *unsafe, *more))
        subprocess.run(words, check=True, cwd=tmp_path, timeout=900)
    for file in ("adapter/adapter_model.safetensors", "plan.json"):
        assert (tmp_path / "near" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("near", "far")
    ]
    assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]
    assert gone(tmp_path)


@pytest.mark.slow
def test_an_actor_with_another_model_takes_no_part(runs: Runs) -> None:
    config = load_config(None, ("data.records=300", "privacy.delta=1e-4"))
    with pytest.raises(ModelError, match="another base model"):
        ray_actor.tasks_of(config, Stage.only(runs.plan), bytes(32))


@pytest.mark.slow
def test_a_run_in_stages_gives_the_same_adapter_on_ray(tmp_path: Path) -> None:
    sets = ("stages.spaces=[basic,compound]", "stages.handover=merge", "federation.rounds=2")
    more = [word for one in (*sets, "unsafe_deterministic_noise=true") for word in ("--set", one)]
    for name, engine in (("near", ()), ("far", ("--engine", "ray"))):
        words = command(*fresh(name, *more, *engine))
        subprocess.run(words, check=True, cwd=tmp_path, timeout=900)
    for file in ("adapter/adapter_model.safetensors", "plan.json"):
        assert (tmp_path / "near" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
    assert gone(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_goes_on(tmp_path: Path, number: int) -> None:
    more = ("--set", "federation.rounds=5", "--engine", "ray")
    running = subprocess.Popen(command(*fresh("cut", *more)), cwd=tmp_path)
    deadline = time.monotonic() + 600
    while not (tmp_path / "cut" / "metrics.jsonl").exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert left_behind(tmp_path)
    running.send_signal(number)
    assert running.wait(120) == 130
    assert gone(tmp_path)
    again = command("--resume", "cut", "--engine", "ray")
    subprocess.run(again, check=True, cwd=tmp_path, timeout=900)
    assert (tmp_path / "cut" / "adapter" / "adapter_model.safetensors").is_file()
    assert gone(tmp_path)


@pytest.mark.slow
def test_a_spent_budget_keeps_its_exit_code(tmp_path: Path) -> None:
    accounts = ("--set", "privacy.ledgers=accounts", "--set", "federation.rounds=2")
    first = command(*fresh("first", *accounts))
    subprocess.run(first, check=True, cwd=tmp_path, timeout=900)
    second = command(*fresh("second", "--engine", "ray", *accounts))
    ended = subprocess.run(second, cwd=tmp_path, timeout=900, capture_output=True, text=True)
    assert ended.returncode == BudgetExceededError.exit_code, ended.stderr
    assert gone(tmp_path)
