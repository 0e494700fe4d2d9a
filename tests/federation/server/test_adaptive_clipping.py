"""Adaptive clipping through whole rounds: real gradients for the optimizer, one ledger, and a resumed norm."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.federation.server.optimizers import AdaptiveClipping, FedAdam, FedAvg, ServerOptimizer
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.server.sum_guard import SumGuard
from carefl_secure.noise import DeterministicKeySource, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import KeptKeys
from tests.support.federation import Bench, known_plan, make_bench, toy_tasks  # noqa: F401
from tests.support.points import clip
from tests.support.running import federate

D, CLIENTS, RECORDS = 40, 6, 200
ADAPTED = {"public_records": CLIENTS * RECORDS, "normalise": False, "target_unclipped_quantile": 0.5, "rounds": 12}
LOCAL = LocalPlan(steps=3, learning_rate=0.1, batch_share=0.5)


class Lengths:
    """Records whose gradients have known directions and lengths, clipped as the rule says; and local steps."""

    dimension, records = D + 1, RECORDS

    def __init__(self, plan: RunPlan, seed: int, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        drawn = rng.normal(size=(RECORDS, D))
        self.lengths = scale * np.exp(rng.normal(-2.0, 0.5, RECORDS))
        self.gradients = drawn * (self.lengths / np.linalg.norm(drawn, axis=1))[:, None]
        rule = AdaptiveNorm.of(plan.privacy)
        assert rule is not None
        self.rule = rule

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        at, total = self.rule.norm(adapter), np.zeros(D)
        for index in indices.tolist():
            total += clip(self.gradients[index], at * (1 - 1e-6), False)
        return self.rule.extend(total, at, int(np.where(self.lengths[indices] <= at, 1, -1).sum()))

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        return np.arange(D + 1) < D

    def gradient(self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        return np.append(self.gradients[indices].mean(axis=0), 0.0)


def adaptive(plan: RunPlan, optimizer: ServerOptimizer) -> AdaptiveClipping:
    rule = AdaptiveNorm.of(plan.privacy)
    assert rule is not None
    return AdaptiveClipping(optimizer, rule, updates=plan.local is not None)


def start(plan: RunPlan) -> NDArray[np.float32]:
    rule = AdaptiveNorm.of(plan.privacy)
    assert rule is not None
    return rule.begin(np.zeros(D, np.float32))


def test_the_other_optimizer_gets_real_gradients_and_their_noise() -> None:
    plan = known_plan(CLIENTS, D + 1, **ADAPTED)
    rule = AdaptiveNorm.of(plan.privacy)
    assert rule is not None
    rng = np.random.default_rng(3)
    gradient, at = rng.normal(size=D + 1), 0.2
    point = np.append(rng.normal(size=D).astype(np.float32), np.float32(math.log(at)))
    signal = math.sqrt(1 - rule.beta**2) * 1.0 / rule.norm(point)
    ours, plain = adaptive(plan, FedAdam(0.1, noise_correction=True)), FedAdam(0.1, noise_correction=True)
    for _ in range(2):
        ours.observe(0.9, 0.4)
        plain.observe(0.9, 0.4 / signal**2)
        moved = ours.step(point, gradient)
        np.testing.assert_array_equal(moved[:-1], plain.step(point[:-1], gradient[:-1] / signal))
    assert moved.dtype == np.float32
    share = min(1.0, max(0.0, (1 + gradient[-1] / rule.beta) / 2))
    assert moved[-1] == pytest.approx(math.log(at) - rule.rate * (share - 0.5), rel=1e-6)
    state = ours.state()
    again = adaptive(plan, FedAdam(0.1, noise_correction=True))
    again.load(state)
    assert {k: np.asarray(v).tolist() for k, v in again.state().items()} == {
        k: np.asarray(v).tolist() for k, v in plain.state().items()
    }


@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_run_finds_the_median_and_its_ledgers_are_those_of_a_fixed_norm(tmp_path: Path, unit: str) -> None:
    """Through the secure sum, with its noise; the initial norm is eight times the median."""
    more: dict[str, Any] = {"local": LOCAL, "sample_rate": 1.0} if unit == "client" else {}
    more |= {"target_epsilon": 200.0, "rounds": 16} if unit == "client" else {}
    plan = known_plan(CLIENTS, D + 1, **{**ADAPTED, **more, "unit": unit})
    fixed = known_plan(CLIENTS, D + 1, **{**ADAPTED, **more, "unit": unit, "target_unclipped_quantile": None})
    assert plan.event == fixed.event and plan.encoding == fixed.encoding
    assert plan.privacy.noise_multiplier == fixed.privacy.noise_multiplier
    tasks = [Lengths(plan, seed) for seed in range(CLIENTS)]
    folders = [RunFolder.create(tmp_path, "", name) for name in ("adaptive", "fixed")]
    for_all = {"dropout": 0.0}
    result = federate(
        plan, tasks, start(plan), optimizer=SumGuard(adaptive(plan, FedAvg(1e-3)), 0), folder=folders[0], **for_all
    )
    federate(fixed, tasks, start(plan), optimizer=FedAvg(1e-3), folder=folders[1], **for_all)
    norms = [float(row["clipping_norm"]) for row in result.rows]
    assert norms[0] == pytest.approx(1.0)
    assert all("clipping_norm" not in row for row in folders[1].read_metrics())
    if unit == "record":
        lengths = np.concatenate([task.lengths for task in tasks])
    else:
        lengths = np.array([0.3 * np.linalg.norm(task.gradients.mean(axis=0)) for task in tasks])
    last = math.exp(float(result.adapter[-1]))
    if unit == "record":
        assert 0.35 < np.mean(lengths <= last) < 0.65, (last, np.median(lengths))
    else:  # six clients with updates of nearly one length: the norm comes down to it
        assert last < 0.5 and norms[-1] > 0.3 * np.median(lengths), (norms, lengths)
    paths = [[folder.ledger, *(folder.client_ledger(i) for i in range(CLIENTS))] for folder in folders]
    for one, other in zip(*paths, strict=True):
        assert Ledger(one).events() == Ledger(other).events() != []
    assert result.epsilon <= plan.privacy.limit


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Stopped after the fourth of six rounds; under known noise, adapter and norm are those of an undisturbed run."""
    plan = known_plan(CLIENTS, D + 1, **{**ADAPTED, "rounds": 6})

    class Stop(SilentReporter):
        def round(self, row: Any) -> None:
            if row["round"] == 4:
                raise KeyboardInterrupt

    def go(name: str, **options: Any) -> FederationResult:
        folder = RunFolder.open(tmp_path / name) if "resume" in options else RunFolder.create(tmp_path, "", name)
        tasks = [Lengths(plan, seed) for seed in range(CLIENTS)]
        return federate(
            plan,
            tasks,
            start(plan),
            optimizer=adaptive(plan, FedAdam(0.01)),
            folder=folder,
            key_source=lambda i: KeptKeys(DeterministicKeySource(b"%d" % i), folder.keys / f"{i}.log"),
            **options,
        )

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("stopped", reporter=Stop())
    kept = np.asarray(RunFolder(tmp_path / "stopped").read_checkpoint()["adapter"])
    assert kept.shape == (D + 1,) and kept[-1] != start(plan)[-1]
    resumed = go("stopped", resume=True)
    assert resumed.adapter.tobytes() == whole.adapter.tobytes()
    norms = [[row["clipping_norm"] for row in run.rows] for run in (resumed, whole)]
    assert norms[0] == norms[1] and len(set(norms[0])) == 6


@pytest.mark.parametrize("told", [math.nan, math.inf, -math.inf, 2e4, -2e4])
def test_a_server_that_sends_no_norm_is_refused_before_the_charge(make_bench: Any, told: float) -> None:  # noqa: F811
    plan = known_plan(CLIENTS, D + 1, **ADAPTED)
    tasks: Any = [Lengths(plan, seed) for seed in range(CLIENTS)]
    bench: Bench = make_bench(CLIENTS, D + 1, tasks=tasks, **ADAPTED)
    session = bench.clients.session(0)
    with pytest.raises(ProtocolError, match="NaN, infinity or entries far beyond"):
        session._check_adapter(np.append(np.zeros(D, np.float32), np.float32(told)))
    assert bench.client_spends() == [0] * CLIENTS


@pytest.mark.parametrize("told", [0.0, 50.0, -50.0, 9e3, -9e3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_lying_server_cannot_have_a_client_send_more_than_its_norm(told: float, scale: float) -> None:
    """Unit client: the whole update, at norms of the server's choosing, and lengths on either side of them."""
    plan = known_plan(CLIENTS, D + 1, **{**ADAPTED, "unit": "client", "sample_rate": 1.0, "local": LOCAL})
    adapter = np.append(np.zeros(D, np.float32), np.float32(told))
    sent = local_work(plan, Lengths(plan, 1, scale), 0).release(adapter, 1, SystemKeySource())
    assert sent.shape == (D + 1,)
    assert 0 < np.linalg.norm(sent) <= plan.privacy.clipping_norm
    rule = AdaptiveNorm.of(plan.privacy)
    assert rule is not None
    assert abs(sent[-1]) == rule.beta
    length = np.linalg.norm(sent[:-1]) * rule.norm(adapter)
    assert (sent[-1] > 0) == (length < 0.99 * math.sqrt(1 - rule.beta**2) * rule.norm(adapter))


def test_a_client_whose_update_is_not_finite_sends_noise_alone() -> None:
    plan = known_plan(CLIENTS, D + 1, **{**ADAPTED, "unit": "client", "sample_rate": 1.0, "local": LOCAL})
    task = Lengths(plan, 1)
    task.gradients[:] = np.nan
    assert not local_work(plan, task, 0).release(start(plan), 1, SystemKeySource()).any()


def test_a_rejected_sum_leaves_the_norm_as_it_is() -> None:
    plan = known_plan(CLIENTS, D + 1, **ADAPTED)
    guard = SumGuard(adaptive(plan, FedAvg(1.0)), 3)
    guard.observe_sum(range(6), 2.0, 1.0)
    np.testing.assert_array_equal(guard.step(start(plan), np.ones(D + 1)), start(plan))


def test_the_plan_survives_json() -> None:
    plan = known_plan(CLIENTS, D + 1, **ADAPTED)
    again = RunPlan.from_json(plan.to_json())
    assert again == plan and again.hash() == plan.hash()
    assert dataclasses.replace(plan.privacy, target_unclipped_quantile=None).hash() != plan.privacy.hash()
