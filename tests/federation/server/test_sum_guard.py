"""What one lying client can do to the model, and how it is found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import skellam

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import Alternating, FedAdam, FedAvg
from carefl_secure.federation.server.sum_guard import SumGuard, _skellam_tail, honest_norm
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.run_folder import RunFolder
from tests.federation.aggregation.test_liars import lying, one_bit
from tests.support.federation import ToyTask, known_plan
from tests.support.running import federate

CLIENTS, DIMENSION, LIAR, SPOILER = 8, 2000, 5, 2
Lie = Callable[[NDArray[Any], RunPlan], NDArray[np.float64]]


def words_of(vector: NDArray[np.float64], plan: RunPlan) -> NDArray[Any]:
    """Return a vector of integers as the words that a client masks."""
    kind = np.uint16 if plan.encoding.bits == 16 else np.uint32
    return np.rint(vector).astype(np.int64).astype(kind)


class Liars:
    """The engine in this process, with one client that masks whatever it likes."""

    def __init__(self, lie: Lie) -> None:
        self.lie = lie

    def start(self, spec: RunSpec) -> Clients:
        parties = Clients(spec)
        session, lie = parties.session(LIAR), self.lie
        honest = session._protected

        def protected(adapter: Any) -> NDArray[Any]:
            words = honest(adapter)
            signed = words.astype(np.int64)
            signed[signed >= 1 << (spec.plan.encoding.bits - 1)] -= 1 << spec.plan.encoding.bits
            return words_of(lie(signed, spec.plan), spec.plan)

        session._protected = protected  # type: ignore[method-assign]
        return parties


def garbage(norm: Callable[[RunPlan], float]) -> Lie:
    """Return a lie of random direction and a norm in integer units."""
    rng = np.random.default_rng(3)

    def lie(honest: NDArray[Any], plan: RunPlan) -> NDArray[np.float64]:
        vector = rng.normal(size=honest.size)
        return vector * (norm(plan) / np.linalg.norm(vector))

    return lie


def plan_of() -> RunPlan:
    return known_plan(CLIENTS, DIMENSION, rounds=16)


def go(tmp_path: Path, lie: Lie | None, guarded: bool = True, **options: Any) -> Any:
    """Run a federation whose records all pull the same way; return result, guard and log."""
    plan = plan_of()
    gradients = np.zeros((30, DIMENSION))
    gradients[:, 0] = 1.0
    guard = SumGuard(FedAvg(1.0), 10)
    folder = RunFolder.create(tmp_path, "")
    result = federate(
        plan,
        [ToyTask(gradients) for _ in range(CLIENTS)],
        np.zeros(DIMENSION, np.float32),
        optimizer=guard if guarded else FedAvg(1.0),
        folder=folder,
        engine=options.pop("engine", None if lie is None else Liars(lie)),
        **options,
    )
    lines = (folder.path / "logs" / "server.jsonl").read_text().splitlines()
    return result, guard, [json.loads(line) for line in lines]


@pytest.mark.parametrize("protocol", ["pairwise", pytest.param("committee", marks=pytest.mark.slow)])
def test_a_client_that_sends_garbage_is_found_and_harms_nothing(tmp_path: Path, protocol: str) -> None:
    lie = garbage(lambda plan: 2.0**20)
    result, guard, log = go(tmp_path, lie, aggregation=protocol)
    rejected = [line["round"] for line in log if line["event"] == "rejected"]
    (excluded,) = [line for line in log if line["event"] == "excluded"]
    assert excluded["client"] == LIAR and guard.excluded == {LIAR}
    assert 1 <= len(rejected) <= CLIENTS and guard.rejected == len(rejected)
    rows = {int(row["round"]): row for row in result.rows}
    assert {n for n, row in rows.items() if "rejected" in row} == set(rejected)
    # Every record pulls coordinate 0 by 1, so each accepted round takes a step of about 1.
    steps = len(rows) - len(rejected)
    assert abs(result.adapter[0] + steps) < 0.3 * steps
    unguarded, _, _ = go(tmp_path / "without", lie, guarded=False, aggregation=protocol)
    astray, guarded = (np.linalg.norm(r.adapter[1:]) for r in (unguarded, result))
    assert astray > 10 * guarded


class Spoilers(Liars):
    """A client whose vector is garbage, and another whose messages are."""

    def start(self, spec: RunSpec) -> Clients:
        parties = super().start(spec)
        honest = parties.grid

        def grid(*rest: Any) -> LocalGrid:
            made = honest(*rest)
            made.__class__ = lying(one_bit, SPOILER)
            return made

        parties.grid = grid  # type: ignore[method-assign]
        return parties


def test_a_liar_in_the_sum_and_one_in_its_messages_are_both_excluded(tmp_path: Path) -> None:
    """One is found by sums of groups, the other named by its messages; the rest are enough."""
    lie = garbage(lambda plan: 2.0**20)
    result, guard, log = go(tmp_path, lie, engine=Spoilers(lie))
    found = [line["client"] for line in log if line["event"] == "excluded"]
    named = [(line["node"], line["excluded"]) for line in log if line["event"] == "fault"]
    assert found == [LIAR] and guard.excluded == {LIAR}
    assert named == [(FIRST_NODE + SPOILER, False), (FIRST_NODE + SPOILER, False), (FIRST_NODE + SPOILER, True)]
    accepted = [row for row in result.rows if "rejected" not in row]
    assert len(accepted) == len(result.rows) - guard.rejected
    assert accepted[-1]["survivors"] == CLIENTS - 2
    # An accepted sum pulls coordinate 0 by as many clients of 8 as are in it.
    assert abs(result.adapter[0] + len(accepted)) < 0.4 * len(accepted)


def test_garbage_below_the_bound_moves_the_model_by_the_bound_at_most(tmp_path: Path) -> None:
    """What is left: such a liar is not found, and costs no more than the bound says."""
    unit = plan_of().encoding.scale
    lies = {
        "below": garbage(lambda plan: 0.5 * unit * honest_norm(plan, CLIENTS)),
        "flip": lambda honest, plan: -honest.astype(np.float64),
    }
    for name, lie in lies.items():
        result, guard, log = go(tmp_path / name, lie)
        assert guard.rejected == 0 and not any(line["event"] == "excluded" for line in log)
        plan = plan_of()
        most = len(result.rows) * honest_norm(plan, CLIENTS) / plan.divisor(CLIENTS)
        assert np.linalg.norm(result.adapter) <= most


LOCAL = LocalPlan(steps=3, learning_rate=0.5, batch_share=0.5)
UNITS: dict[str, dict[str, Any]] = {
    "record": {},
    "person": {"unit": "person", "public_records": 15 * CLIENTS},
    "client": {"unit": "client", "local": LOCAL, "sample_rate": 1.0, "target_epsilon": 50.0},
    "none": {"unit": "none"},
}
NOBODY_TRUSTED = {"trust": "none", "local": LOCAL, "target_epsilon": 50.0}


class Steep(ToyTask):
    """Records that all pull the same way as strongly as clipping allows, in any unit."""

    most_records = 2

    @property
    def persons(self) -> int:
        return self.records // 2

    def clipped_person_sum(
        self, adapter: NDArray[np.float32], persons: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        return self.clipped_sum(adapter, 2 * persons, number)

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        return np.ones(self.dimension, np.bool_)

    def gradient(self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = 1e6 * self.gradients[indices].mean(axis=0)
        return mean


@pytest.mark.parametrize("unit", [*UNITS, pytest.param("trust none", marks=pytest.mark.slow)])
def test_honest_clients_are_never_rejected(tmp_path: Path, unit: str) -> None:
    """The worst honest records, all in one direction, stay below a bound that is not far away."""
    plan = known_plan(CLIENTS, 300, rounds=2, **UNITS.get(unit, NOBODY_TRUSTED))
    gradients = np.zeros((30, 300))
    gradients[:, 0] = 1.0
    guard = SumGuard(FedAvg(1e-3), 0)  # the first rejected sum would end the run
    result = federate(
        plan,
        [Steep(gradients) for _ in range(CLIENTS)],
        np.zeros(300, np.float32),
        optimizer=guard,
        folder=RunFolder.create(tmp_path, ""),
    )
    bound = honest_norm(plan, CLIENTS)
    assert honest_norm(plan, CLIENTS, 0.5) < bound
    norms = [row["gradient_norm"] * abs(plan.divisor(CLIENTS)) / bound for row in result.rows]
    assert guard.rejected == 0 and len(norms) == 2
    assert unit == "none" or 0.2 < max(norms) < 1


def test_an_assumption_on_the_records_catches_a_smaller_lie(tmp_path: Path) -> None:
    """Records that agree by a tenth, as assumed, pass; a lie below the certain bound does not."""
    plan = plan_of()
    rows = np.random.default_rng(1).normal(size=(30, DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    lie = garbage(lambda plan: 0.5 * plan.encoding.scale * honest_norm(plan, CLIENTS))
    for liar, agreement in ((None, 0.3), (lie, 0.3), (lie, 1.0)):
        guard = SumGuard(FedAvg(1.0), 16, agreement)
        federate(
            plan,
            [ToyTask(rows) for _ in range(CLIENTS)],
            np.zeros(DIMENSION, np.float32),
            optimizer=guard,
            folder=RunFolder.create(tmp_path, ""),
            engine=None if liar is None else Liars(liar),
        )
        assert guard.excluded == ({LIAR} if liar is not None and agreement < 1 else set())


def test_the_tail_of_skellam_noise_is_bounded_and_nearly_right() -> None:
    for variance in (0.5, 30.0, 1e4):
        for chance in (1e-3, 1e-9):
            x = _skellam_tail(variance, chance)
            exact = skellam.sf(np.ceil(x) - 1, variance / 2, variance / 2)
            assert exact <= chance < 40 * skellam.sf(0.93 * x - 2, variance / 2, variance / 2)


def test_the_noise_alone_nearly_reaches_its_bound() -> None:
    """With hardly a record expected the bound is that of the noise, a few per cent above it."""
    plan = plan_run(
        PlanRequest(
            unit="record", dimension=DIMENSION, clients=CLIENTS, rounds=4, public_records=8,
            sample_rate=0.01, clipping_norm=1.0, delta=1e-3, target_epsilon=1.0,
        )
    )  # fmt: skip
    noise = plan.noise_norm(CLIENTS) * plan.divisor(CLIENTS)
    assert noise < honest_norm(plan, CLIENTS) < 3 * noise


def search(guard: SumGuard, clients: int, least: int, liars: set[int], rounds: int = 60) -> int:
    """Play rounds with one random dropout each until a liar is excluded; return how many."""
    rng = random.Random(7)
    for number in range(1, rounds + 1):
        present = set(range(clients))
        cohort = present - guard.leave_out(present, least)
        if len(cohort) > least:
            cohort -= {rng.choice(sorted(cohort))}
        assert len(cohort) >= least
        guard.observe_sum(cohort, 2.0 if cohort & liars else 0.5, 1.0)
        guard.step(np.zeros(1, np.float32), np.zeros(1))
        if guard.found:
            return number
    raise AssertionError("nobody was found")


@pytest.mark.parametrize(("clients", "least"), [(8, 6), (100, 67), (1000, 667)])
def test_one_liar_is_found_among_any_number(clients: int, least: int) -> None:
    for liar in (0, clients // 2, clients - 1):
        guard = SumGuard(FedAvg(1.0), 2 * clients)
        rounds = search(guard, clients, least, {liar})
        assert guard.excluded == {liar}
        assert rounds <= 3 + max(8, 2 * np.log2(clients) + 4)
        # A second one is found after the first.
        search(guard, clients, least, {liar, 1})
        assert guard.excluded == {liar, 1}


def test_liars_that_nobody_can_be_named_for_end_the_run() -> None:
    guard = SumGuard(FedAvg(1.0), 10)
    with pytest.raises(ProtocolError, match=r"(?s)11 opened sums .*max_rejected_rounds"):
        search(guard, 8, 6, {1, 2, 6})
    assert not guard.excluded
    nobody_spare = SumGuard(FedAvg(1.0), 0)
    nobody_spare.observe_sum(range(3), 2.0, 1.0)
    assert nobody_spare.leave_out(range(3), 3) == set()
    with pytest.raises(ProtocolError):
        nobody_spare.step(np.zeros(1, np.float32), np.zeros(1))


def test_a_rejected_sum_changes_neither_adapter_nor_optimizer() -> None:
    trains = np.array([True, False])
    inner = Alternating([(FedAdam(0.1), trains), (FedAdam(0.1), ~trains)])
    guard = SumGuard(inner, 5)
    adapter, gradient = np.zeros(2, np.float32), np.ones(2)
    guard.observe_sum({0, 1, 2}, 0.5, 1.0)
    first = guard.step(adapter, gradient)
    before = {k: v for k, v in inner.state().items() if k != "turns"}
    guard.observe_sum({0, 1, 2}, 1.5, 1.0)
    assert np.array_equal(guard.step(first, 1e9 * gradient), first) and guard.excess == 1.5
    after = inner.state()
    assert after.pop("turns") == 2  # the round is over, so the other half is next
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    guard.observe_sum({0, 1}, 0.5, 1.0)
    third = guard.step(first, gradient)
    assert third[0] != first[0] and third[1] == first[1]


def test_a_resumed_run_remembers_whom_it_excluded() -> None:
    guard = SumGuard(FedAvg(1.0, 0.5), 5)
    guard.observe_sum({0, 1, 2}, 2.0, 1.0)
    for _ in range(2):
        guard.observe_sum({0, 1}, 0.5, 1.0)
        guard.step(np.zeros(1, np.float32), np.ones(1))
    again = SumGuard(FedAvg(1.0, 0.5), 5)
    again.load(guard.state())
    assert again.leave_out({0, 1, 2}, 2) == {2} and again.rejected == 1
    again.observe_sum({0, 1}, 0.5, 1.0)
    assert again.found == again.excluded == {2}
    once_more = SumGuard(FedAvg(1.0, 0.5), 5)
    once_more.load(again.state())
    assert once_more.leave_out({0, 1, 2}, 2) == {2}
    with pytest.raises(ProtocolError, match="written without federation"):
        once_more.load(FedAvg(1.0, 0.5).state())
