"""A whole run: learning, stopping, going on, and what stands in the folder."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from carefl_secure.errors import BudgetExceededError, ConfigError, LedgerError, RunError
from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAdam, FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

PlanToy = Callable[..., RunPlan]
TasksToy = Callable[..., list[Any]]


class Keeper:
    """A reporter that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.notes: list[str] = []
        self.steps: list[tuple[str, str, int]] = []

    def start(self, task: str, total: int) -> None:
        self.steps.append(("start", task, total))

    def advance(self, task: str, step: int = 1) -> None:
        self.steps.append(("advance", task, step))

    def finish(self, task: str) -> None:
        self.steps.append(("finish", task, 0))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        self.rows.append(row)


class Runner:
    """One folder and everything needed to run and resume in it."""

    def __init__(self, plan: RunPlan, tasks: list[Any], folder: RunFolder) -> None:
        self.plan, self.tasks, self.folder = plan, tasks, folder
        self.keeper = Keeper()

    def run(self, **options: Any) -> FederationResult:
        settings: dict[str, Any] = {
            "optimizer": FedAvg(0.5, momentum=0.5),
            "folder": self.folder,
            "base_hash": bytes(32),
            "reporter": self.keeper,
        }
        zeros = np.zeros(self.plan.encoding.dimension, np.float32)
        return federate(self.plan, self.tasks, zeros, **{**settings, **options})

    def spends(self, index: int | None = None) -> int:
        path = self.folder.ledger if index is None else self.folder.client_ledger(index)
        return len(Ledger(path).events())

    def releases(self) -> int:
        return sum(e.kind == "release" for e in Ledger(self.folder.ledger).entries())


@pytest.fixture
def make_runner(tmp_path: Path, plan_toy: PlanToy, tasks_toy: TasksToy) -> Callable[..., Runner]:
    def make(clients: int = 6, records: int = 30, **changes: Any) -> Runner:
        plan = plan_toy(clients, **changes)
        return Runner(plan, tasks_toy(clients, 60, records), RunFolder.create(tmp_path, ""))

    return make


class Pull:
    """A task whose loss is half the squared distance to a point, clipped to norm 1."""

    def __init__(self, target: NDArray[np.float64], records: int) -> None:
        self.target, self.records, self.dimension = target, records, target.size

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1
    ) -> NDArray[np.float64]:
        away = adapter.astype(np.float64) - self.target
        clipped: NDArray[np.float64] = away / max(1.0, float(np.linalg.norm(away)))
        return clipped * len(indices)


@pytest.mark.parametrize("unit", ["none", "record"])
def test_a_run_learns_with_and_without_privacy(tmp_path: Path, plan_toy: PlanToy, unit: str) -> None:
    target = np.random.default_rng(0).normal(size=20) / 4
    plan = plan_toy(6, 20, unit=unit, rounds=30, public_records=60_000, delta=1e-6)
    tasks = [Pull(target, 10_000) for _ in range(6)]

    def evaluate(adapter: NDArray[np.float32]) -> dict[str, float]:
        return {"distance": float(np.linalg.norm(adapter - target))}

    result = federate(
        plan,
        tasks,
        np.zeros(20, np.float32),
        optimizer=FedAvg(0.3),
        folder=RunFolder.create(tmp_path, ""),
        base_hash=bytes(32),
        evaluate=evaluate,
        evaluate_every=10,
        dropout=0.1,
    )
    assert evaluate(result.adapter)["distance"] < 0.05 < np.linalg.norm(target)
    scored = [row["round"] for row in result.rows if "distance" in row]
    assert scored == [10, 20, 30]
    assert result.epsilon == math.inf if unit == "none" else 7.9 < result.epsilon <= 8.0


def test_the_folder_tells_the_whole_run(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(rounds=3)
    result = runner.run()
    assert [row["round"] for row in result.rows] == [1, 2, 3]
    assert runner.folder.read_metrics() == list(result.rows)
    assert [dict(row) for row in runner.keeper.rows] == list(result.rows)
    spent = [row["epsilon"] for row in result.rows]
    assert spent == sorted(spent)
    assert spent[-1] == result.epsilon <= 8.0
    assert all(row["survivors"] == 6 for row in result.rows)
    rounds = [step for step in runner.keeper.steps if step[1] == "rounds"]
    assert rounds == [("start", "rounds", 3), *[("advance", "rounds", 1)] * 3, ("finish", "rounds", 0)]
    inner = [step for step in runner.keeper.steps if step[1] == "round 2, masked"]
    assert inner == [
        ("start", "round 2, masked", 6),
        *[("advance", "round 2, masked", 1)] * 6,
        ("finish", "round 2, masked", 0),
    ]
    state = runner.folder.read_checkpoint()
    assert state["round"] == 3
    np.testing.assert_array_equal(state["adapter"], result.adapter)
    plan = json.loads(runner.folder.plan.read_text())
    assert plan["event"]["variance"] == runner.plan.event.variance  # type: ignore[union-attr]
    assert (runner.spends(), runner.releases()) == (3, 3)
    assert [runner.spends(i) for i in range(6)] == [3] * 6


def test_bytes_up_and_down_are_vector_and_adapter_and_little_more(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(rounds=1)
    (row,) = runner.run().rows
    vector = runner.plan.encoding.padded * runner.plan.encoding.bits // 8
    assert vector < row["bytes_up"] < vector + 5 * 1024  # type: ignore[operator]
    adapter = 4 * runner.plan.encoding.dimension
    assert adapter < row["bytes_down"] < adapter + 5 * 1024  # type: ignore[operator]
    (line,) = (one for one in runner.folder.read_events() if one["event"] == "traffic")
    ways = [sum(way) / runner.plan.privacy.clients for way in zip(*line["bytes_up_down"].values(), strict=True)]
    assert [row["bytes_up"], row["bytes_down"]] == [round(mean) for mean in ways]


@pytest.mark.parametrize(("fraction", "gone"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.9, 3)])
def test_exactly_so_many_vanish_and_min_survivors_remain(
    make_runner: Callable[..., Runner], fraction: float, gone: int
) -> None:
    runner = make_runner(clients=10, max_colluders=0, rounds=4)
    result = runner.run(dropout=fraction, seed=3)
    assert [row["survivors"] for row in result.rows] == [10 - gone] * 4
    assert any("min_survivors" in note for note in runner.keeper.notes) == (fraction == 0.9)
    paid = [runner.spends(i) for i in range(10)]
    assert sum(paid) == 4 * (10 - gone)  # those who vanish before masking pay nothing
    if gone:
        assert set(paid) - {0, 4}  # not the same clients in every round


def test_who_vanishes_follows_from_the_seed_and_nothing_secret_does(make_runner: Callable[..., Runner]) -> None:
    paid, adapters = [], []
    for seed in (1, 1, 2):
        runner = make_runner(clients=10, max_colluders=0, rounds=3)
        adapters.append(runner.run(dropout=0.3, seed=seed).adapter)
        paid.append([runner.spends(i) for i in range(10)])
    assert paid[0] == paid[1] != paid[2]
    assert np.linalg.norm(adapters[0] - adapters[1]) > 0.1 * np.linalg.norm(adapters[0])


class Stop:
    """Interrupts the run when a given client is asked for its vector in a given round."""

    def __init__(self, number: int, action: str = "train.masked") -> None:
        self.number, self.action = str(number), action

    def __call__(self, node: int, message: Message) -> None:
        meta = message.metadata
        if (meta.group_id, meta.message_type, node) == (self.number, self.action, FIRST_NODE + 2):
            raise KeyboardInterrupt


@pytest.mark.parametrize("action", ["query.share", "train.masked", "query.unmask"])
def test_an_interrupted_run_goes_on_and_never_spends_more(make_runner: Callable[..., Runner], action: str) -> None:
    runner = make_runner(rounds=5)
    ahead = action != "query.share"  # which rides on round 2 otherwise
    with pytest.raises(KeyboardInterrupt):
        runner.run(record=Stop(3, action), optimizer=FedAdam(0.1), key_prefetch=ahead)
    before = runner.folder.read_checkpoint()
    assert before["round"] == 2
    assert [row["round"] for row in runner.folder.read_metrics()] == [1, 2]
    lost = 0 if action == "query.share" else 1
    assert (runner.spends(), runner.releases()) == (2 + lost, 2)

    result = runner.run(resume=True, optimizer=FedAdam(0.1))
    last = 5 - lost
    assert [row["round"] for row in result.rows] == list(range(1, last + 1))
    assert (runner.spends(), runner.releases()) == (5, last)
    assert 7.9 < result.epsilon <= 8.0
    assert all(runner.spends(i) <= 5 for i in range(6))
    assert any("already charged" in note for note in runner.keeper.notes) == bool(lost)
    # nothing is left to do, and asking again does nothing
    again = runner.run(resume=True, optimizer=FedAdam(0.1))
    np.testing.assert_array_equal(again.adapter, result.adapter)
    assert runner.spends() == 5


@pytest.mark.parametrize("lost", ["one", "all"])
def test_a_run_whose_clients_lost_what_they_spent_does_not_go_on(
    make_runner: Callable[..., Runner], lost: str
) -> None:
    """Elsewhere, or without its files, it would begin new ledgers and forget the rounds before."""
    runner = make_runner(rounds=5)
    with pytest.raises(KeyboardInterrupt):
        runner.run(record=Stop(3), optimizer=FedAdam(0.1))
    gone = range(6) if lost == "all" else [1]
    kept = {index: runner.folder.client_ledger(index).read_bytes() for index in gone}
    for index in gone:
        runner.folder.client_ledger(index).unlink()
    with pytest.raises(LedgerError, match=r"round 1 of .* used the sums of 6 clients, and only [05] client"):
        runner.run(resume=True, optimizer=FedAdam(0.1))
    assert not any(runner.folder.client_ledger(index).exists() for index in gone)
    for index, content in kept.items():
        runner.folder.client_ledger(index).write_bytes(content)
    assert runner.run(resume=True, optimizer=FedAdam(0.1)).rows[-1]["round"] > 2


def test_a_resumed_run_continues_the_very_same_path(make_runner: Callable[..., Runner]) -> None:
    def path(stop: bool) -> NDArray[np.float32]:
        runner = make_runner(unit="none", sample_rate=1.0, rounds=4)
        options: dict[str, Any] = {"optimizer": FedAdam(0.1)}
        if stop:
            with pytest.raises(KeyboardInterrupt):
                runner.run(record=Stop(3), **options)
            options = {"optimizer": FedAdam(0.1), "resume": True}
        return runner.run(**options).adapter

    np.testing.assert_allclose(path(stop=True), path(stop=False), atol=1e-7)


def test_a_stop_between_figures_and_checkpoint_leaves_no_double_rows(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(rounds=4)
    original = RunFolder.write_checkpoint

    def write(folder: RunFolder, state: Mapping[str, Any]) -> None:
        if state["round"] == 2:
            raise KeyboardInterrupt
        original(folder, state)

    monkeypatch.setattr(RunFolder, "write_checkpoint", write)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    monkeypatch.undo()
    assert [row["round"] for row in runner.folder.read_metrics()] == [1, 2]
    result = runner.run(resume=True)
    assert [row["round"] for row in result.rows] == [1, 2, 3]
    assert runner.spends() == 4


@pytest.mark.parametrize("tail", [b'{"round": 3, "eps', b"\0" * 40, b"\xff\xfe{]\n", b""])
def test_torn_figures_and_an_empty_plan_do_not_block_a_paid_run(
    make_runner: Callable[..., Runner], tail: bytes
) -> None:
    runner = make_runner(rounds=4)
    with pytest.raises(KeyboardInterrupt):
        runner.run(record=Stop(3), optimizer=FedAdam(0.1))
    whole = runner.folder.plan.read_bytes()
    with runner.folder.metrics.open("ab") as file:
        file.write(tail)
    runner.folder.plan.write_bytes(b"" if tail else whole[:20])
    with pytest.raises(RunError, match=r"plan\.json"):
        runner.folder.read_plan()
    result = runner.run(resume=True, optimizer=FedAdam(0.1))
    assert [row["round"] for row in result.rows] == [1, 2, 3]
    assert runner.folder.plan.read_bytes() == whole
    assert runner.spends() == 4


def test_a_torn_ledger_line_is_cut_only_when_that_is_asked(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(rounds=4)
    with pytest.raises(KeyboardInterrupt):
        runner.run(record=Stop(2, "query.share"), key_prefetch=False)
    for path in (runner.folder.ledger, runner.folder.client_ledger(1)):
        with path.open("ab") as file:
            file.write(b'{"hash":"00')
    with pytest.raises(LedgerError, match="ledger recover"):
        runner.run(resume=True)
    for path in (runner.folder.ledger, runner.folder.client_ledger(1)):
        Ledger(path).recover()
    result = runner.run(resume=True)
    assert [row["round"] for row in result.rows] == [1, 2, 3, 4]
    assert runner.spends() == runner.spends(1) == 4


def test_a_changed_server_ledger_stops_the_run(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(rounds=4)
    with pytest.raises(KeyboardInterrupt):
        runner.run(record=Stop(3))
    lines = runner.folder.ledger.read_bytes().splitlines(keepends=True)
    runner.folder.ledger.write_bytes(b"".join(lines[:1] + lines[2:]))  # one spend taken out
    with pytest.raises(LedgerError):
        runner.run(resume=True)


def test_the_server_refuses_a_round_over_the_target_before_it_asks_anyone(
    make_runner: Callable[..., Runner], make_bench: Callable[..., Any]
) -> None:
    bench = make_bench(rounds=2, max_epsilon=100.0)
    with pytest.raises(BudgetExceededError):
        bench.start(rounds=3)
    assert len(bench.rows) == 2
    assert bench.client_spends() == [2] * 6
    assert {m.metadata.group_id for _, m in bench.seen} == {"1", "2"}


def test_a_clients_spent_ledger_stops_the_run_and_keeps_the_last_round(
    make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = make_runner(rounds=6)
    with pytest.raises(BudgetExceededError):
        runner.run(max_epsilon=6.0)
    finished = runner.folder.read_checkpoint()["round"]
    assert 0 < finished < 6  # type: ignore[operator]
    assert len(runner.folder.read_metrics()) == finished


def test_folders_are_not_mixed_up(make_runner: Callable[..., Runner], plan_toy: PlanToy) -> None:
    runner = make_runner(rounds=2)
    with pytest.raises(RunError, match="no checkpoint"):
        runner.run(resume=True)
    runner.run()
    with pytest.raises(RunError, match="used before"):
        runner.run()
    runner.plan = plan_toy(6, rounds=9)
    with pytest.raises(RunError, match="another plan"):
        runner.run(resume=True)


def test_senseless_calls_are_refused(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    for options in ({"dropout": 1.0}, {"dropout": math.nan}, {"evaluate_every": 0}):
        with pytest.raises(ConfigError):
            runner.run(**options)
        assert runner.keeper.steps == []
        runner.folder.checkpoint.unlink(missing_ok=True)
    runner.tasks = runner.tasks[:5]
    with pytest.raises(ConfigError, match="tasks"):
        runner.run()


@pytest.mark.parametrize("figures", [{"score": math.nan}, {"epsilon": 1.0}])
def test_an_evaluation_that_would_spoil_the_row_is_refused(
    make_runner: Callable[..., Runner], figures: dict[str, float]
) -> None:
    runner = make_runner()
    with pytest.raises(RunError, match="evaluation"):
        runner.run(evaluate=lambda adapter: figures)


def test_the_room_never_loads_torch_and_keeps_flower_quiet() -> None:
    code = (
        "import os, sys\n"
        "os.environ.pop('FLWR_TELEMETRY_ENABLED', None)\n"
        "import carefl_secure.federation\n"
        "assert 'torch' not in sys.modules\n"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0'\n"
        "assert os.environ['FLWR_DISABLE_UPDATE_CHECK'] == '1'\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_writes_nothing_to_the_terminal(
    make_runner: Callable[..., Runner], capfd: pytest.CaptureFixture[str]
) -> None:
    make_runner(rounds=1).run()
    assert capfd.readouterr() == ("", "")


def test_parties_are_closed_when_a_restore_fails(make_runner: Callable[..., Runner]) -> None:
    closed: list[str] = []

    class Watched(Clients):
        def close(self) -> None:
            closed.append("closed")
            super().close()

    with pytest.raises(RunError, match="no checkpoint"):
        make_runner(rounds=1).run(resume=True, engine=SimpleNamespace(start=Watched))
    assert closed == ["closed"]
