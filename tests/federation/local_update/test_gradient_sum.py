"""What each unit releases: against formulas, against removals, and after the ledger was paid."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import BudgetExceededError, ConfigError, DataError, NonFiniteError, PrivacyError
from carefl_secure.federation.local_update.choice import local_work
from carefl_secure.federation.local_update.task import DeferredTask
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.noise import DeterministicKeySource, KeyStream, SystemKeySource, gaussian
from carefl_secure.privacy import SampledGaussian, SampledSkellam, epsilon, poisson_sample
from tests.support import points as _POINTS
from tests.support.running import in_process

PointTask, clip, point_tasks = _POINTS.PointTask, _POINTS.clip, _POINTS.point_tasks

MakeBench = Callable[..., Any]
PlanToy = Callable[..., RunPlan]
LOCAL = LocalPlan(steps=4, learning_rate=0.1, batch_share=0.5)


@pytest.fixture
def plans(plan_toy: PlanToy) -> Callable[..., RunPlan]:
    def make(kind: str, **changes: Any) -> RunPlan:
        settings: dict[str, Any] = {
            "person": {"unit": "person", "public_records": 48},
            "kept": {"unit": "person", "public_records": 48, "records_per_person": 3},
            "client": {"unit": "client", "sample_rate": 1.0, "local": LOCAL},
            "own": {"unit": "record", "trust": "none", "local": LOCAL},
            "none": {"unit": "none", "local": LOCAL},
            "record": {"unit": "record"},
        }[kind]
        return plan_toy(6, 40, **{"normalise": False, **settings, **changes})

    return make


def keys(seed: str = "k") -> DeterministicKeySource:
    return DeterministicKeySource(seed.encode())


def start(dimension: int = 40) -> Any:
    return np.random.default_rng(2).normal(size=dimension).astype(np.float32)


def test_a_persons_mean_is_one_loss(plans: Any) -> None:
    plan = plans("person")
    (task,) = point_tasks(1)
    found = local_work(plan, task, 0).release(start(), 1, keys())
    drawn = poisson_sample(8, 0.5, KeyStream(keys().key("sample")))
    assert 0 < drawn.size < 8
    expected = np.zeros(40)
    for person in drawn.tolist():
        expected += clip(start() - task.points[3 * person : 3 * person + 3].mean(0), 1.0, False)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["person", "kept"])
def test_removing_a_person_of_five_records_moves_the_vector_within_the_sensitivity(plans: Any, kind: str) -> None:
    """Same draws for everybody else; the person's own draws at their worst."""
    kept = 5 if kind == "kept" else None
    plan = plans(kind, sample_rate=1.0, records_per_person=kept)
    rng = np.random.default_rng(4)
    owners = np.concatenate([np.full(5, 99), rng.integers(0, 8, 20)])
    points = 100 * rng.normal(size=(25, 40))
    points[:5] = 300  # five records that all pull one way
    whole, without = PointTask(points, owners), PointTask(points[5:], owners[5:])
    if kind == "kept":
        whole, without = (
            PointTask(t.points[np.sort(np.concatenate([p[:5] for p in t.people]))], o)
            for t, o in _capped(whole, without, owners)
        )
    change = [local_work(plan, t, 0).release(start(), 1, keys()) for t in (whole, without)]
    moved = float(np.linalg.norm(change[0] - change[1]))
    assert moved <= plan.privacy.sensitivity * (1 + 1e-9)
    assert plan.privacy.sensitivity == (5.0 if kind == "kept" else 1.0)
    assert plan.encoding.clipping_norm == plan.privacy.sensitivity
    # what the promise would be broken by: clipping records under the person's sensitivity of C
    broken = whole.clipped_sum(start(), np.arange(5), 1)
    assert np.linalg.norm(broken) > 4.0


def _capped(whole: PointTask, without: PointTask, owners: Any) -> Any:
    for task, owner in ((whole, owners), (without, owners[5:])):
        keep = np.sort(np.concatenate([p[:5] for p in task.people]))
        yield task, owner[keep]


def test_a_person_with_more_records_than_agreed_is_refused(plans: Any) -> None:
    (task,) = point_tasks(1)
    local_work(plans("kept"), task, 0)
    with pytest.raises(PrivacyError, match="3 records, the plan allows 2"):
        local_work(plans("kept", records_per_person=2), task, 0)
    with pytest.raises(PrivacyError, match="more persons than"):
        local_work(plans("person", public_records=7), task, 0)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_client_releases_its_bounded_move(plans: Any, normalise: bool) -> None:
    plan = plans("client", normalise=normalise)
    (task,) = point_tasks(1)
    found = local_work(plan, task, 0).release(start(), 1, keys())
    point = start().astype(np.float64)
    steps = [entry for entry in task.log if entry[0] == "plain"]
    assert len(steps) == 4
    for _, seen, batch in steps:
        assert batch.size == 12  # half of 24 records
        np.testing.assert_allclose(seen, point, rtol=1e-6, atol=1e-6)
        point = point - 0.1 * (point - task.points[batch].mean(0))
    for first, second in (steps[:2], steps[2:]):  # every two batches are one pass over the data
        assert sorted([*first[2], *second[2]]) == list(range(24))
    delta = point - start()
    assert np.linalg.norm(delta) > 1.0
    np.testing.assert_allclose(found, clip(delta, 1.0, normalise), rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(found) <= 1.0


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_no_client_adds_more_than_the_norm(plans: Any, scale: float, normalise: bool) -> None:
    plan = plans("client", normalise=normalise, clipping_norm=0.5)
    task = PointTask(scale * np.random.default_rng(1).normal(size=(9, 40)))
    found = local_work(plan, task, 0).release(start(), 1, SystemKeySource())
    assert np.linalg.norm(found) <= 0.5
    nobody = local_work(plan, PointTask(np.zeros((0, 40))), 0)
    assert not nobody.release(start(), 1, SystemKeySource()).any()


def test_local_dp_sgd_releases_the_noisy_move_and_nothing_else(plans: Any) -> None:
    plan = plans("own")
    (task,) = point_tasks(1)
    found = local_work(plan, task, 0).release(start(), 1, keys())
    source, point = keys(), start().astype(np.float64)
    batch = plan.privacy.expected_batch / 6
    assert batch == 15.0  # the public one: 0.5 * 180 / 6, though the client holds 24
    calls = iter(task.log)
    for _ in range(4):
        drawn = poisson_sample(24, 0.5, KeyStream(source.key("sample")))
        _, seen, indices = next(calls)
        np.testing.assert_array_equal(indices, drawn)
        np.testing.assert_allclose(seen, point, rtol=1e-6, atol=1e-6)
        total = sum(clip(seen - task.points[i], 1.0, False) for i in drawn.tolist())
        noise = gaussian(KeyStream(source.key("noise")), 40, plan.noise_multiplier)
        point = point - 0.1 * (total + noise) / batch
    np.testing.assert_allclose(found, point - start(), rtol=1e-6, atol=1e-9)


def test_local_noise_has_the_planned_size(plans: Any) -> None:
    """Without records a move is noise alone, of the variance that the plan states."""
    plan = plans("own")
    nobody = PointTask(np.zeros((0, 40)))
    moves = np.stack([local_work(plan, nobody, 0).release(start(), 1, keys(str(i))) for i in range(60)])
    planned = plan.noise_variance(1)
    # 2400 draws: the mean square has a relative deviation of 0.029; seeds are fixed
    assert abs(float(np.mean(moves**2)) / planned - 1) < 0.12
    assert plan.noise_variance(5) == pytest.approx(planned / 5)


def test_local_moves_are_cut_and_never_refused(plans: Any) -> None:
    plan = plans("own")
    cramped = dataclasses.replace(plan, encoding=dataclasses.replace(plan.encoding, vector_bound=1e-4))
    (task,) = point_tasks(1)
    found = local_work(cramped, task, 0).release(start(), 1, keys())
    free = local_work(plan, point_tasks(1)[0], 0).release(start(), 1, keys())
    np.testing.assert_array_equal(found, np.clip(free, -1e-4, 1e-4))
    assert np.abs(free).max() < plan.encoding.vector_bound / 3  # nothing is cut as planned


def test_proximal_steps_stay_closer_and_follow_the_formula(plans: Any) -> None:
    local = dataclasses.replace(LOCAL, proximal_mu=5.0, batch_share=1.0)
    (task,) = point_tasks(1)
    found = local_work(plans("none", local=local), task, 0).release(start(), 1, keys())
    w = start().astype(np.float64)
    for _ in range(4):
        w = w - 0.1 * ((w - task.points.mean(0)) + 5.0 * (w - start()))
    np.testing.assert_allclose(found, w - start(), rtol=1e-5, atol=1e-6)
    straight = dataclasses.replace(LOCAL, batch_share=1.0)
    free = local_work(plans("none", local=straight), task, 0).release(start(), 1, keys())
    assert np.linalg.norm(found) < 0.7 * np.linalg.norm(free)


def test_a_record_that_is_no_number_leaves_local_steps_noise_alone(plans: Any) -> None:
    (task,) = point_tasks(1)
    task.points[:, 0] = np.nan
    found = local_work(plans("own"), task, 0).release(start(), 1, SystemKeySource())
    assert np.isfinite(found).all() and found.any()


def test_a_record_that_is_no_number_stops_an_unprotected_client(plans: Any) -> None:
    (task,) = point_tasks(1)
    task.points[:, 0] = np.nan
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        local_work(plans("none"), task, 0).release(start(), 1, SystemKeySource())


@pytest.mark.parametrize("kind", ["record", "person", "kept", "client", "own"])
@pytest.mark.parametrize("fault", ["nan", "error"])
def test_a_failing_record_is_hidden_in_every_unit(plans: Any, kind: str, fault: str) -> None:
    """Where the noise comes later, zeros; where it is part of the steps, the steps' noise."""
    (task,) = point_tasks(1)
    task.points[:, 0] = np.nan
    if fault == "error":
        for name in ("clipped_sum", "clipped_person_sum", "gradient"):
            setattr(task, name, _failing)
    plan = plans(kind)
    found = local_work(plan, task, 0).release(start(), 1, SystemKeySource())
    assert np.isfinite(found).all()
    assert found.any() == (plan.share_variance == 0)


class Fault:
    """Raises at one of the calls that are made to compute a client's vector."""

    KINDS = (RuntimeError, LookupError, TypeError, MemoryError, FloatingPointError, OSError)
    PLACES = ("local_update", "points.py", "sampling.py")

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        path, outer = Path(frame.f_code.co_filename), frame.f_back
        if event != "call" or not {path.name, path.parent.name} & set(self.PLACES):
            return
        while outer is not None and outer.f_code.co_name != "_contained":
            outer = outer.f_back
        if outer is not None:
            self.calls += 1
            if self.calls == self.at:
                raise self.KINDS[self.at % len(self.KINDS)]("record 17")


@pytest.mark.parametrize("kind", ["record", "person", "kept", "client", "own", "feddyn"])
def test_a_fault_at_any_call_after_the_charge_is_hidden(plans: Any, kind: str) -> None:
    """Walk every path: fail at the first call of the computation, the second, and so on."""
    local = LocalPlan(steps=2, learning_rate=0.1, batch_share=0.5, feddyn_alpha=0.5)
    plan = plans("own", local=local) if kind == "feddyn" else plans(kind)

    def calls(at: int) -> int:
        work, fault = local_work(plan, point_tasks(1)[0], 0), Fault(at)
        sys.setprofile(fault)
        try:
            found = work.release(start(), 1, keys())
        finally:
            sys.setprofile(None)
        assert found.shape == (40,) and np.isfinite(found).all()
        return fault.calls

    every = calls(0)
    assert every > 3
    assert [calls(at) for at in range(1, every + 1)] == list(range(1, every + 1))


@pytest.mark.parametrize("kind", ["record", "person", "kept", "client", "own"])
def test_records_that_cannot_be_used_are_hidden_in_every_unit(plans: Any, kind: str) -> None:
    def make() -> Any:
        raise DataError("an image is damaged")

    plan = plans(kind)
    work = local_work(plan, DeferredTask(40, make), 0)
    found = work.release(start(), 1, SystemKeySource())
    assert found.any() == (plan.share_variance == 0)  # where the noise is part of the steps
    assert work.save() == b""


def _failing(*args: Any) -> Any:
    raise LookupError("record 17 has no label")


@pytest.mark.parametrize("kind", ["record", "person", "kept", "client", "own", "none"])
def test_the_ledger_is_paid_before_a_record_is_read(plans: Any, kind: str, make_bench: MakeBench) -> None:
    plan = plans(kind)
    tasks = point_tasks(6)
    bench = make_bench(tasks=tasks, dimension=40)
    bench.plan = plan
    bench.clients = in_process(plan, tasks, bench.folder)
    paid: list[int] = []
    for index, task in enumerate(tasks):
        for name in ("clipped_sum", "clipped_person_sum", "gradient"):
            inner = getattr(task, name)

            def watched(*args: Any, inner: Any = inner, index: int = index) -> Any:
                paid.append(len(bench.clients.ledgers[index].entries()))
                return inner(*args)

            setattr(task, name, watched)
    bench.start(rounds=1)
    assert paid and min(paid) >= 2  # the opening entry and the spend
    for ledger in bench.clients.ledgers:
        events = ledger.events()
        assert events == ([] if plan.event is None else [plan.event])


def test_a_client_without_budget_reads_nothing(plans: Any, make_bench: MakeBench) -> None:
    plan, tasks = plans("own"), point_tasks(6)
    bench = make_bench(tasks=tasks, dimension=40)
    bench.plan = plan
    bench.clients = in_process(plan, tasks, bench.folder, max_epsilon=0.5)
    with pytest.raises(BudgetExceededError):
        bench.start(rounds=1)
    assert not any(task.log for task in tasks)


def test_the_price_is_that_of_the_unit(plans: Any) -> None:
    own = plans("own")
    assert own.event == SampledGaussian(0.5, own.noise_multiplier, 4)
    assert own.share_variance == 0.0  # the sum adds nothing: each client made its own
    client = plans("client")
    assert isinstance(client.event, SampledSkellam)
    assert client.event.sample_rate == 1.0
    kept = plans("kept")
    assert isinstance(kept.event, SampledSkellam)
    assert kept.event.sample_rate == pytest.approx(1 - 0.5**3)
    for plan in (own, client, kept, plans("person")):
        assert 7.9 < epsilon([plan.event] * 3, 1e-5) <= 8.0


def test_the_server_opens_the_mean_move(plans: Any, make_bench: MakeBench) -> None:
    """Without noise, plain averaging of moves is FedAvg to the rounding of the sum."""
    plan = plans("none", local=dataclasses.replace(LOCAL, batch_share=1.0))
    tasks = point_tasks(6)
    bench = make_bench(tasks=tasks, dimension=40)
    bench.plan = plan
    bench.clients = in_process(plan, tasks, bench.folder)
    found = bench.start(rounds=1)
    means = np.stack([task.points.mean(0) for task in tasks])
    expected = means.mean(0) * (1 - 0.9**4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_plans_that_contradict_their_unit_are_refused(plans: Any, tasks_toy: Any) -> None:
    with pytest.raises(ConfigError, match="LocalPlan"):
        plans("client", local=None)
    with pytest.raises(ConfigError, match="LocalPlan"):
        plans("own", local=None)
    with pytest.raises(ConfigError, match="no local steps"):
        plans("person", local=LOCAL)
    with pytest.raises(ConfigError, match="needs trust 'secagg'"):
        plans("person", trust="none", local=LOCAL)
    with pytest.raises(ConfigError, match="clipped sums only"):
        local_work(plans("client"), tasks_toy(1, 40)[0], 0)
    with pytest.raises(ConfigError, match="know its persons"):
        local_work(plans("person"), tasks_toy(1, 40)[0], 0)


def test_the_agreed_hash_covers_the_local_steps(plans: Any) -> None:
    plan = plans("client")
    changed = [
        dataclasses.replace(plan, local=dataclasses.replace(LOCAL, **change))
        for change in (
            {"steps": 5},
            {"learning_rate": 0.2},
            {"batch_share": 0.4},
            {"proximal_mu": 0.1},
            {"feddyn_alpha": 0.1},
            {"stragglers": 0.5},
            {"seed": 1},
        )
    ]
    assert len({p.hash() for p in (plan, *changed)}) == 8
    assert "local" not in plans("record").to_json()


def test_stragglers_are_public_partial_and_drawn_anew() -> None:
    local = dataclasses.replace(LOCAL, steps=10, stragglers=0.5, seed=3)
    rounds = [[local.steps_of(i, 8, number) for i in range(8)] for number in range(1, 30)]
    for taken in rounds:
        assert sum(steps < 10 for steps in taken) == 4
        assert all(1 <= steps <= 10 for steps in taken)
    assert rounds == [[local.steps_of(i, 8, n) for i in range(8)] for n in range(1, 30)]
    assert len({tuple(taken) for taken in rounds}) > 20
    assert {LOCAL.steps_of(i, 8, 1) for i in range(8)} == {4}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "local_steps"),
        ({"learning_rate": 0.0}, "local_lr"),
        ({"batch_share": 0.0}, "batch share"),
        ({"proximal_mu": -1.0}, "proximal_mu"),
        ({"proximal_mu": 1.0, "feddyn_alpha": 1.0}, "two rules"),
        ({"proximal_mu": 10.0}, "jumps over"),
        ({"stragglers": 1.0}, "stragglers"),
        ({"steps": 1, "stragglers": 0.5}, "straggler"),
    ],
)
def test_senseless_local_plans_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(LOCAL, **change)


def test_memory_needs_no_folder(tmp_path: Path, plans: Any) -> None:
    local = dataclasses.replace(LOCAL, feddyn_alpha=0.5)
    (task,) = point_tasks(1)
    one = local_work(plans("none", local=local), task, 0)
    one.release(start(), 1, keys())
    other = local_work(plans("none", local=local), task, 0)
    other.restore(one.save())
    np.testing.assert_array_equal(one.release(start(), 2, keys("n")), other.release(start(), 2, keys("n")))


class Opposed:
    """A client whose records pull one way, and the last one, where it is there, the other way."""

    dimension = 40

    def __init__(self, records: int, other: bool, most: int | None = None) -> None:
        pulls = np.ones(records)
        pulls[-1] = -1.0 if other else 1.0
        # with ``most`` a cut to that many records, by a key that nobody else knows
        order = (
            np.argsort([hashlib.sha256(b"key%d" % i).digest() for i in range(records)]) if most else np.arange(records)
        )
        self.pulls = pulls[np.sort(order[:most])]

    @property
    def records(self) -> int:
        return self.pulls.size

    def clipped_sum(self, adapter: Any, indices: Any, number: int = 1) -> Any:
        return np.eye(1, 40)[0] * self.pulls[indices].sum()


def test_a_record_beyond_the_declared_number_moves_the_sum_by_one_norm(plans: Any) -> None:
    """All take part: a cut to the declared number lets the record displace another, and moves it by two."""
    plan = plans("record", public_records=20, sample_rate=1.0)

    def vector(task: Any) -> Any:
        return local_work(plan, DeferredTask(40, lambda: task), 0).release(start(), 1, keys())

    with_it, without = vector(Opposed(31, True)), vector(Opposed(30, False))
    assert without[0] == 30  # more than 20 take part
    assert np.linalg.norm(with_it - without) <= plan.privacy.clipping_norm
    cuts = [
        np.linalg.norm(vector(Opposed(n + 1, True, most=20)) - vector(Opposed(n, False, most=20)))
        for n in range(21, 60)
    ]
    assert max(cuts) == pytest.approx(2 * plan.privacy.clipping_norm)
