"""The three ways of summing: one adapter, every dropout, every loss, and going on afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ConfigError, ProtocolError, RunError
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support.federation import CLIENTS, PEERS, Runs, losing
from tests.support.steps import take

MakeBench = Callable[..., Any]
MEMBERS = ["query.committee_announce", "query.committee_open", "query.committee_answer"]
HOLDER = ["query.holder_key", "query.open_sum"]
VECTORS = {"committee": "train.submit", "encrypted": "train.masked"}
PHASES = [
    ("committee", "query.role"),
    ("committee", "train.submit"),
    *[("encrypted", action) for action in ("query.role", *PEERS)],
]
LOSSES = [
    ("committee", "query.role"),
    *[("committee", action) for action in MEMBERS],
    ("encrypted", "query.role"),
    *[("encrypted", action) for action in HOLDER],
]


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"modes %d" % index)


@pytest.mark.parametrize("unit", ["record", "none"])
def test_three_modes_give_the_same_adapter_bit_for_bit(runs: Runs, plan_toy: Callable[..., Any], unit: str) -> None:
    runs.plan = plan_toy(CLIENTS, max_colluders=0, rounds=2, unit=unit)
    options = {"key_source": keys, "dropout": 0.2, "seed": 4}
    found: dict[str, FederationResult] = {
        mode: runs.go(mode, **options) for mode in ("pairwise", "committee", "encrypted")
    }
    found["two members"] = runs.go("committee", committee_members=2, **options)
    first = found["pairwise"].adapter
    assert np.count_nonzero(first) == first.size
    for result in found.values():
        np.testing.assert_array_equal(result.adapter, first)
        assert [row["survivors"] for row in result.rows] == [6, 6]
        assert [row["epsilon"] for row in result.rows] == [row["epsilon"] for row in found["pairwise"].rows]
    # other keys, another adapter: the comparison can fail
    other = runs.go("committee", key_source=lambda i: keys(i + 100), dropout=0.2, seed=4)
    assert np.abs(other.adapter - first).max() > 1e-4 or unit == "none"


def test_the_opened_words_are_the_same_even_where_they_wrap(
    make_bench: MakeBench, opened_words: list[NDArray[np.uint16]]
) -> None:
    """Short words of any size, the lowest one among them, whose sum leaves its range."""
    sums = opened_words
    for mode in ("pairwise", "committee", "encrypted"):
        bench = make_bench(dimension=2000, delta=1e-4, aggregation=mode)
        assert bench.plan.encoding.bits == 16
        bench.start()
    assert sums[0].dtype == sums[1].dtype == sums[2].dtype == np.uint16
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], sums[2])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("mode", ["committee", "encrypted"])
def test_without_privacy_the_step_is_the_mean_gradient(make_bench: MakeBench, mode: str, workers: int) -> None:
    bench = make_bench(unit="none", sample_rate=1.0, aggregation=mode)
    adapter = bench.start(workers=workers)
    whole = np.concatenate([task.gradients for task in bench.tasks])
    np.testing.assert_allclose(adapter, -whole.mean(axis=0), atol=1e-5)
    assert [len(task.calls[0]) for task in bench.tasks] == [30] * 6


@pytest.mark.parametrize("replies", [False, True])
@pytest.mark.parametrize(("mode", "action"), PHASES)
def test_a_dropout_at_any_phase_leaves_the_exact_sum_of_the_rest(
    make_bench: MakeBench, mode: str, action: str, replies: bool
) -> None:
    bench = make_bench(CLIENTS, max_colluders=0, unit="none", sample_rate=1.0, aggregation=mode)
    adapter = bench.start(drop=losing(action, {1, 4}, replies))
    rest = [0, 1, 2, 3, 4, 5, 6] if action in PEERS[3:] else [0, 2, 3, 5, 6]
    whole = np.concatenate([bench.tasks[i].gradients for i in rest])
    np.testing.assert_allclose(adapter, -whole.mean(axis=0), atol=1e-5)
    assert bench.rows[0]["survivors"] == len(rest)
    assert bench.releases() == 1


@pytest.mark.parametrize(("mode", "action"), PHASES)
def test_below_min_survivors_nothing_is_opened(make_bench: MakeBench, mode: str, action: str) -> None:
    bench = make_bench(CLIENTS, max_colluders=0, aggregation=mode)
    with pytest.raises(CohortError):
        bench.start(drop=losing(action, {0, 1, 4}, replies=True))
    assert bench.rows == [] and bench.releases() == 0
    asked = any(message.metadata.message_type == VECTORS[mode] for _, message in bench.seen)
    assert bench.server_spends() == int(asked)
    assert all(spent <= bench.server_spends() for spent in bench.client_spends())
    opened = {"query.committee_answer", "query.unmask"}
    if action not in opened:
        assert not any(message.metadata.message_type in opened for _, message in bench.seen)


@pytest.mark.parametrize("replies", [False, True])
@pytest.mark.parametrize(("mode", "action"), LOSSES)
def test_a_lost_helper_ends_the_round_with_nothing_opened(
    make_bench: MakeBench, mode: str, action: str, replies: bool
) -> None:
    bench = make_bench(aggregation=mode)
    helper = 6 if mode == "encrypted" else 8  # the key holder, or the last of three members
    with pytest.raises(CohortError):
        bench.start(drop=losing(action, {helper}, replies))
    assert bench.rows == [] and bench.releases() == 0
    early = action in ("query.role", "query.committee_announce", "query.holder_key")
    assert bench.server_spends() == (0 if early else 1)
    assert bench.client_spends() == [0 if early else 1] * 6
    assert early == all(task.calls == [] for task in bench.tasks)


class Stop:
    """Interrupts the run when a node is asked for something in a given round."""

    def __init__(self, number: int, action: str, node: int) -> None:
        self.wanted = (str(number), action, node)

    def __call__(self, node: int, message: Message) -> None:
        meta = message.metadata
        if (meta.group_id, meta.message_type, node - FIRST_NODE) == self.wanted:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("mode", "action", "node", "lost"),
    [
        ("committee", "train.submit", 2, 1),
        ("committee", "query.committee_announce", 8, 0),
        ("committee", "query.committee_answer", 8, 1),
        ("encrypted", "query.open_sum", 7, 1),
        ("encrypted", "query.holder_key", 7, 0),
    ],
)
def test_an_interrupted_run_goes_on_with_new_helpers(
    runs: Runs, plan_toy: Callable[..., Any], mode: Aggregation, action: str, node: int, lost: int
) -> None:
    runs.plan = plan_toy(CLIENTS, max_colluders=0, rounds=4)
    folder = RunFolder.create(runs.home, "")
    ahead = action != "query.committee_announce"  # which rides on round 1 otherwise
    with pytest.raises(KeyboardInterrupt):
        runs.go(mode, folder, record=Stop(2, action, node), key_prefetch=ahead)
    assert len(Ledger(folder.ledger).events()) == 1 + lost
    result = runs.go(mode, folder, resume=True)
    assert [row["round"] for row in result.rows] == list(range(1, 5 - lost))
    assert len(Ledger(folder.ledger).events()) == 4
    assert result.epsilon <= 8.0


def test_a_run_is_not_resumed_in_another_mode(runs: Runs) -> None:
    folder = RunFolder.create(runs.home, "")
    with pytest.raises(KeyboardInterrupt):
        runs.go("committee", folder, record=Stop(2, "train.submit", 2))
    for mode in ("pairwise", "encrypted"):
        with pytest.raises(RunError, match="begun with aggregation committee"):
            runs.go(mode, folder, resume=True)
    assert len(runs.go("committee", folder, resume=True).rows) == 1


@pytest.mark.parametrize("mode", ["committee", "encrypted"])
def test_the_ledger_holds_the_round_before_a_record_is_read(make_bench: MakeBench, mode: str) -> None:
    bench = make_bench(aggregation=mode)
    spent: list[tuple[int, int]] = []
    task, original = bench.tasks[2], bench.tasks[2].clipped_sum

    def clipped_sum(adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1) -> Any:
        spent.append((len(bench.clients.ledgers[2].events()), bench.server_spends()))
        return original(adapter, indices, number)

    task.clipped_sum = clipped_sum
    bench.start(rounds=2)
    assert spent == [(1, 1), (2, 2)]
    assert bench.client_spends() == [2] * 6 and bench.releases() == 2


@pytest.mark.parametrize("mode", ["committee", "encrypted"])
def test_a_record_that_is_not_finite_does_not_show(make_bench: MakeBench, mode: str) -> None:
    bench = make_bench(aggregation=mode)
    bench.tasks[4].gradients[:, 7] = np.nan
    bench.start()
    assert not any(m.has_error() for _, m in bench.seen)
    assert bench.releases() == 1 and bench.client_spends()[4] == 1


@pytest.mark.parametrize("mode", ["committee", "encrypted"])
def test_a_whole_round_with_a_new_session_for_every_message(make_bench: MakeBench, mode: str) -> None:
    bench = make_bench(unit="none", sample_rate=1.0, aggregation=mode)
    moved = bench.start_afresh(rounds=2)
    whole = np.concatenate([task.gradients for task in bench.tasks])
    np.testing.assert_allclose(moved, -2 * whole.mean(axis=0), atol=1e-5)
    for _, message in bench.seen:  # and nothing is lost in Flower's own serialisation
        proto = recorddict_to_proto(message.content)
        there = type(proto).FromString(proto.SerializeToString())
        assert recorddict_from_proto(there) == message.content


@pytest.mark.parametrize("cut", [0, 2, 50, 500, -1])
def test_a_saved_encrypted_session_that_is_damaged_is_refused(make_bench: MakeBench, cut: int) -> None:
    bench = make_bench(aggregation="encrypted")
    session = bench.clients.sessions[0]
    plan = bench.plan.hash()
    session.advertise(1, plan, take(bench.clients.helpers[0], "holder_key", round=1, plan=plan))
    saved = session.save()
    session.restore(saved)
    with pytest.raises(ProtocolError):
        session.restore(saved[:40] + saved[40:][:cut] if cut else saved[:41])


def test_bytes_are_those_of_clients_and_not_of_helpers(make_bench: MakeBench) -> None:
    bench = make_bench(dimension=4000, aggregation="committee", members=2)
    bench.start(rounds=2)
    vector = bench.plan.encoding.padded * bench.plan.encoding.bits // 8
    for row in bench.rows:
        assert vector < row["bytes_up"] < vector + 4 * 1024


def test_sums_too_large_to_encrypt_are_refused_before_anything_is_written(
    runs: Runs, plan_toy: Callable[..., Any], tmp_path: Path
) -> None:
    runs.plan = plan_toy(CLIENTS, max_colluders=0, public_records=600_000, delta=1e-7)
    folder = RunFolder.create(tmp_path, "")
    with pytest.raises(ConfigError, match="pairwise or committee"):
        runs.go("encrypted", folder)
    assert not folder.ledger.exists() and not folder.checkpoint.exists()
