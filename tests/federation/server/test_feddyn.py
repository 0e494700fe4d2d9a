"""FedDyn from sums alone: against the paper's algorithm, across stops, and what it needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ConfigError, NonFiniteError, ProtocolError, RunError
from carefl_secure.federation.aggregation.base import ClientSetup
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.local_update.feddyn_state import Correction
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.federation.server.optimizers import FedAvg, FedDyn, Listener
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.noise import SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support import points as _POINTS
from tests.support.running import federate, in_process

ALPHA = 0.5
# Whole batches: without noise every run is then the same.
LOCAL = LocalPlan(steps=6, learning_rate=0.2, batch_share=1.0, feddyn_alpha=ALPHA)
PlanToy = Callable[..., RunPlan]


def dyn_plan(plan_toy: PlanToy, rounds: int = 6) -> RunPlan:
    return plan_toy(6, 40, unit="none", normalise=False, local=LOCAL, rounds=rounds)


def run(folder: RunFolder, plan: RunPlan, tasks: Any, **settings: Any) -> FederationResult:
    return federate(
        plan, tasks, np.zeros(40, np.float32), optimizer=FedDyn(ALPHA), folder=folder, base_hash=bytes(32), **settings
    )


def by_the_paper(tasks: Any, rounds: int) -> list[Any]:
    """Acar et al., Algorithm 1, with every client active and local steps of plain descent."""
    w, h = np.zeros(40), np.zeros(40)
    own = [np.zeros(40) for _ in tasks]
    path = []
    for _ in range(rounds):
        ends = []
        for i, task in enumerate(tasks):
            mean, v = task.points.mean(0), w.copy()
            for _ in range(LOCAL.steps):
                v = v - LOCAL.learning_rate * ((v - mean) - own[i] + ALPHA * (v - w))
            own[i] = own[i] - ALPHA * (v - w)
            ends.append(v)
        h = h - ALPHA / len(tasks) * sum(v - w for v in ends)
        w = np.mean(ends, axis=0) - h / ALPHA
        path.append(w.copy())
    return path


def test_server_and_clients_follow_the_paper(plan_toy: PlanToy, tmp_path: Path) -> None:
    tasks = _POINTS.point_tasks(6)
    result = run(RunFolder.create(tmp_path, "a: 1\n"), dyn_plan(plan_toy), tasks)
    path = by_the_paper(tasks, 6)
    np.testing.assert_allclose(result.adapter, path[-1], rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(path[-1] - path[0]) > 0.1


def test_it_reaches_the_optimum_of_uneven_curvatures_where_averaging_does_not() -> None:
    """Clients of unlike curvature: FedAvg's fixed point is biased, FedDyn's is the optimum."""
    curvature, centre = np.array([1.0, 8.0]), np.array([0.0, 1.0])
    best = float((curvature * centre).sum() / curvature.sum())

    def local(w: float, i: int, own: float, alpha: float) -> float:
        v = w
        for _ in range(20):
            v -= 0.05 * (curvature[i] * (v - centre[i]) - own + alpha * (v - w))
        return v

    averaged, dynamic = np.zeros(1, np.float32), np.zeros(1, np.float32)
    server, own = FedDyn(1.0), [0.0, 0.0]
    for _ in range(300):
        averaged = averaged + np.float32(
            np.mean([local(float(averaged[0]), i, 0.0, 0.0) for i in (0, 1)]) - averaged[0]
        )
        w = float(dynamic[0])
        moves = [local(w, i, own[i], 1.0) - w for i in (0, 1)]
        own = [h - move for h, move in zip(own, moves, strict=True)]
        server.observe(1.0, 0.0)
        dynamic = server.step(dynamic, -np.mean(moves, keepdims=True))
    assert abs(float(dynamic[0]) - best) < 1e-3
    assert abs(float(averaged[0]) - best) > 0.05


def test_partial_participation_weighs_the_servers_memory() -> None:
    server = FedDyn(0.5)
    server.observe(0.25, 0.0)
    moved = server.step(np.zeros(2, np.float32), -np.array([1.0, 2.0]))
    # h = -0.5 * 0.25 * d; w = d - h / 0.5 = 1.25 d
    np.testing.assert_allclose(moved, [1.25, 2.5])
    np.testing.assert_allclose(server.state()["correction"], [-0.125, -0.25])


def test_a_resumed_run_is_the_whole_run(plan_toy: PlanToy, tmp_path: Path) -> None:
    plan, tasks = dyn_plan(plan_toy), _POINTS.point_tasks(6)
    whole = run(RunFolder.create(tmp_path / "a", "a: 1\n"), plan, tasks)
    folder = RunFolder.create(tmp_path / "b", "a: 1\n")

    class Stop(Exception):
        pass

    seen: list[int] = []

    def evaluate(adapter: Any) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 4:  # the fourth round is opened, but never reaches the checkpoint
            raise Stop
        return {}

    with pytest.raises(Stop):
        run(folder, plan, tasks, evaluate=evaluate)
    (kept,) = folder.client(0).glob("feddyn-*.bin")
    assert kept.stat().st_mode & 0o777 == 0o600
    again = run(folder, plan, tasks, resume=True)
    np.testing.assert_allclose(again.adapter, whole.adapter, rtol=1e-5, atol=1e-6)
    # without the clients' memories it is another run
    other = RunFolder.create(tmp_path / "c", "a: 1\n")
    seen.clear()
    with pytest.raises(Stop):
        run(other, plan, tasks, evaluate=evaluate)
    for i in range(6):
        for kept in other.client(i).glob("feddyn-*.bin"):
            kept.unlink()
    lost = run(other, plan, tasks, resume=True)
    assert np.abs(lost.adapter - whole.adapter).max() > 0.01


def test_the_memory_forgets_a_round_that_is_run_again(tmp_path: Path) -> None:
    memory = Correction(3, 2.0, tmp_path / "deep" / "c.bin")
    memory.advance(1, np.ones(3))
    memory.advance(2, np.ones(3))
    np.testing.assert_array_equal(memory.at(3), [-4.0] * 3)
    np.testing.assert_array_equal(memory.at(2), [-2.0] * 3)
    again = Correction(3, 2.0, tmp_path / "deep" / "c.bin")
    again.advance(2, np.full(3, 5.0))
    np.testing.assert_array_equal(again.at(3), [-12.0] * 3)
    other = Correction(3, 2.0)
    other.restore(again.save())
    np.testing.assert_array_equal(other.at(3), [-12.0] * 3)


def test_a_damaged_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.bin"
    memory = Correction(3, 2.0, path)
    memory.advance(1, np.ones(3))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" + whole[1:], b""):
        with pytest.raises(ProtocolError):
            Correction(3, 2.0).restore(damaged)
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="start a new run"):
            Correction(3, 2.0, path)
    path.write_bytes(whole)
    with pytest.raises(RunError):
        Correction(4, 2.0, path)


@pytest.mark.parametrize("kind", ["client", "own"])
def test_the_memory_holds_nothing_but_what_was_released(plan_toy: PlanToy, kind: str) -> None:
    """The bounded move of unit client and the noisy one of trust none, never the raw one."""
    unit: dict[str, Any] = {
        "client": {"unit": "client", "sample_rate": 1.0},
        "own": {"unit": "record", "trust": "none"},
    }[kind]
    plan = plan_toy(6, 40, normalise=False, local=LOCAL, **unit)
    (task,) = _POINTS.point_tasks(1, spread=5.0)
    work = local_work(plan, task, 0)
    released = work.release(np.zeros(40, np.float32), 1, SystemKeySource())
    memory = Correction(40, ALPHA)
    memory.restore(work.save())
    np.testing.assert_array_equal(memory.at(2), -ALPHA * released)


def test_the_session_carries_the_memory(plan_toy: PlanToy, make_bench: Any) -> None:
    plan, tasks = dyn_plan(plan_toy), _POINTS.point_tasks(6)
    bench = make_bench(tasks=tasks, dimension=40)
    mine, other = (
        in_process(plan, tasks, folder)
        for folder in (bench.folder, RunFolder.create(bench.folder.path.parent / "o", "a: 1\n"))
    )
    bench.plan, bench.clients = plan, mine
    bench.start(rounds=1)
    saved = mine.sessions[2].save()
    fresh = bench.fresh_session(2)
    fresh.restore(saved)
    memory = mine.sessions[2]._work.save()
    assert fresh._work.save() == memory and len(memory) > 40 * 8
    assert len(saved) > 40 * 16
    with pytest.raises(ProtocolError):
        fresh.restore(saved[:-1])
    with pytest.raises(ProtocolError, match="another client or run"):
        other.sessions[2].restore(saved)


def test_it_needs_to_know_who_survived() -> None:
    assert isinstance(FedDyn(1.0), Listener)
    assert not isinstance(FedAvg(1.0), Listener)
    with pytest.raises(RunError, match="survived"):
        FedDyn(1.0).step(np.zeros(2, np.float32), np.zeros(2))
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError):
            FedDyn(bad)
    server = FedDyn(1.0)
    server.observe(1.0, 0.0)
    with pytest.raises(NonFiniteError):
        server.step(np.zeros(2, np.float32), np.array([np.nan, 0.0]))
    assert not np.asarray(server.state()["correction"]).size
    with pytest.raises(RunError):
        server.step(np.zeros(2, np.float32), np.zeros(3))
    with pytest.raises(RunError):
        server.load({})
    assert dataclasses.replace(LOCAL).pull == ALPHA


def test_a_new_run_begins_with_a_fresh_correction(plan_toy: PlanToy, tmp_path: Path) -> None:
    """Runs, plans and clients that share a ledger folder share no correction."""
    keys = [Ed25519PrivateKey.generate() for _ in range(6)]
    roster = tuple(key.public_key().public_bytes_raw() for key in keys)

    def session(run: str, plan: RunPlan, index: int = 0) -> ClientSession:
        size = plan.encoding.dimension
        task = _POINTS.point_tasks(1, dimension=size)[0]
        cohort = Cohort(run.encode(), roster, bytes(32))
        return ClientSession(
            ClientSetup(plan, cohort, index, keys[index], SystemKeySource()),
            task,
            Ledger(tmp_path / f"{run}-{index}.jsonl"),
            memory=tmp_path / "shared",
        )

    def correction(made: ClientSession) -> Any:
        return made._work._correction.at(2)  # type: ignore[attr-defined]

    plan = dyn_plan(plan_toy)
    first = session("one", plan)
    first._work.release(np.zeros(40, np.float32), 1, SystemKeySource())
    assert correction(first).any()
    np.testing.assert_array_equal(correction(session("one", plan)), correction(first))
    assert not correction(session("two", plan)).any()
    assert not correction(session("one", plan, 1)).any()
    shorter = plan_toy(6, 20, unit="none", normalise=False, local=LOCAL, rounds=6)
    assert not correction(session("one", shorter)).any()
    for path in (tmp_path / "shared").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
