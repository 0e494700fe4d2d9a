"""The client: pays before it reads, refuses what is not agreed, and says no more than a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import (
    BudgetExceededError,
    CareflError,
    CohortError,
    ConfigError,
    EngineError,
    LedgerError,
    NonFiniteError,
    PrivacyError,
    ProtocolError,
)
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.transport.error_codes import error_of_reply
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import pack, pack_adapter, with_adapter
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy import SampledSkellam

MakeBench = Callable[..., Any]


class Hand:
    """A server played by hand: every step of a round, in order or not."""

    def __init__(self, bench: Any, number: int = 1) -> None:
        self.bench = bench
        self.sessions = bench.clients.sessions
        self.adapter = np.zeros(bench.plan.encoding.dimension, np.float32)
        self.number = number

    def advertise(self, session: ClientSession) -> bytes:
        plan = self.bench.plan
        return session.advertise(self.number, plan.hash())

    def until_masked(self) -> list[dict[int, bytes]]:
        """Run the key phases and return every client's inbox."""
        adverts = {s.index: self.advertise(s) for s in self.sessions}
        shares = {s.index: s.share(adverts) for s in self.sessions}
        return [{j: shares[j][i] for j in shares if j != i} for i in range(len(self.sessions))]


def test_the_ledger_holds_the_round_before_a_record_is_read(make_bench: MakeBench) -> None:
    bench = make_bench()
    spent_at_call: list[int] = []
    task = bench.tasks[2]
    original = task.clipped_sum

    def clipped_sum(adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1) -> Any:
        spent_at_call.append(len(bench.clients.ledgers[2].events()))
        return original(adapter, indices, number)

    task.clipped_sum = clipped_sum
    bench.start()
    assert spent_at_call == [1]
    assert bench.clients.ledgers[2].events() == [bench.plan.event]


def test_a_reply_that_is_lost_was_paid_for(make_bench: MakeBench) -> None:
    bench = make_bench(clients=7, max_colluders=0)

    def drop(node: int, message: Message) -> bool:
        lost = bool(message.metadata.reply_to_message_id) or node == FIRST_NODE + 1
        return message.metadata.message_type == "train.masked" and node <= FIRST_NODE + 1 and lost

    bench.start(drop=drop)
    # client 0 answered and its answer was lost; client 1 was never reached
    assert bench.client_spends() == [1, 0, 1, 1, 1, 1, 1]
    assert bench.rows[0]["survivors"] == 5


def test_a_fault_of_the_program_was_paid_for_and_is_no_dropout(make_bench: MakeBench) -> None:
    bench = make_bench()

    def clipped_sum(adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1) -> Any:
        raise NameError("no such name")

    bench.tasks[0].clipped_sum = clipped_sum
    with pytest.raises(EngineError, match="NameError"):
        bench.start()
    assert bench.client_spends()[0] == 1
    assert bench.releases() == 0


def test_what_a_client_pays_is_what_the_plan_says(make_bench: MakeBench) -> None:
    bench = make_bench(rounds=3)
    bench.start(rounds=3)
    for ledger in bench.clients.ledgers:
        events = ledger.events()
        assert len(events) == 3
        assert all(isinstance(event, SampledSkellam) for event in events)
        assert 7.9 < ledger.epsilon(1e-5) <= 8.0


def test_a_clients_own_limit_stops_the_run_with_the_right_error(make_bench: MakeBench) -> None:
    bench = make_bench(max_epsilon=5.0, rounds=10)
    with pytest.raises(BudgetExceededError, match="node"):
        bench.start(rounds=10)
    assert 0 < len(bench.rows) < 10
    assert all(ledger.epsilon(1e-5) <= 5.0 for ledger in bench.clients.ledgers)
    assert bench.releases() == len(bench.rows)


def test_a_ledger_outlives_the_run(make_bench: MakeBench, tmp_path: Path) -> None:
    first = make_bench(ledgers=tmp_path / "ledgers")
    first.start(rounds=3)
    second = make_bench(ledgers=tmp_path / "ledgers")
    with pytest.raises(BudgetExceededError):
        second.start()
    assert second.rows == []
    assert second.client_spends() == [3] * 6


def test_a_ledger_that_was_changed_stops_the_client(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.start()
    path = bench.clients.ledgers[3].path
    path.write_text(path.read_text().replace('"variance":', '"variance":1'))
    bench.start(finished=1)  # it refuses, and has dropped out of the round
    assert [row["survivors"] for row in bench.rows] == [6, 5]
    reply = next(m for _, m in bench.seen if m.has_error())
    assert isinstance(error_of_reply(reply.error, 1003), LedgerError)


def replies(bench: Any) -> list[tuple[int, str, set[str]]]:
    """Return who sent which message with what in it, as the server sees them."""
    return sorted(
        (m.metadata.src_node_id, m.metadata.message_type, {str(k) for k in m.content or ()})
        for _, m in bench.seen
        if m.metadata.src_node_id >= 1000 and not m.has_error()
    )


def _raise(error: Exception) -> Any:
    def clipped_sum(adapter: Any, indices: Any, number: int = 1) -> Any:
        raise error

    return clipped_sum


@pytest.mark.parametrize(
    "fault",
    [
        lambda task: task.gradients.__setitem__((slice(None), 7), np.nan),
        lambda task: task.gradients.__setitem__((slice(None), 7), np.inf),
        lambda task: task.gradients.__imul__(1e4),  # a task that does not clip
        lambda task: setattr(task, "clipped_sum", _raise(RuntimeError("out of memory"))),
        lambda task: setattr(task, "clipped_sum", _raise(OSError("an image has gone"))),
        lambda task: setattr(task, "clipped_sum", _raise(ConfigError("17 records"))),
        lambda task: setattr(task, "clipped_sum", _raise(TypeError("a caption is None"))),
        lambda task: setattr(task, "clipped_sum", _raise(IndexError("no such token"))),
    ],
    ids=["nan", "inf", "long", "memory", "file", "refusal", "type", "index"],
)
def test_nothing_after_the_charge_depends_on_a_record(
    make_bench: MakeBench, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the records do, the server gets the same messages and opens a sum of the same."""
    sound, bench = make_bench(), make_bench()
    sound.start()
    fault(bench.tasks[4])
    adapter = bench.start()
    assert replies(bench) == replies(sound)
    assert not any(m.has_error() for _, m in bench.seen)
    assert bench.releases() == sound.releases() == 1
    assert bench.client_spends() == sound.client_spends()
    assert np.isfinite(adapter).all() and np.count_nonzero(adapter) == adapter.size


@pytest.mark.parametrize("entry", [np.nan, np.inf, 1e9])
def test_an_adapter_beyond_reason_is_refused_before_the_charge(make_bench: MakeBench, entry: float) -> None:
    bench = make_bench()
    hand = Hand(bench)
    adapter = hand.adapter.copy()
    adapter[3] = entry
    inboxes = hand.until_masked()
    for session, inbox in zip(bench.clients.sessions, inboxes, strict=True):
        with pytest.raises(ProtocolError, match="nothing was charged"):
            session.release(1, bench.plan.hash(), adapter, inbox)
    assert bench.client_spends() == [0] * 6
    assert all(task.calls == [] for task in bench.tasks)


def test_an_adapter_may_not_grow_without_measure(make_bench: MakeBench) -> None:
    bench = make_bench(rounds=3)
    bench.start(rounds=2)
    hand = Hand(bench, number=3)
    inboxes = hand.until_masked()
    grown = hand.adapter + np.float32(5000.0)  # each entry is within the range
    with pytest.raises(ProtocolError, match="nothing was charged"):
        bench.clients.sessions[0].release(3, bench.plan.hash(), grown, inboxes[0])
    assert bench.client_spends() == [2] * 6


def test_no_round_beyond_the_plan_is_taken_part_in(make_bench: MakeBench) -> None:
    """Whatever the ledger's limit would allow: neither a later number nor one more attempt."""
    bench = make_bench(rounds=2, max_epsilon=100.0)
    bench.start(rounds=2)
    session = bench.clients.sessions[0]
    for ask in (session.advertise, session.advertise_prefetch):
        for number in (3, 0, -1, -(2**40), 2**63, 2**200):
            with pytest.raises(ProtocolError, match="beyond the agreed plan"):
                ask(number, bench.plan.hash())
    with pytest.raises(BudgetExceededError, match="are charged already"):
        session._budget.charge(2)
    assert bench.client_spends() == [2] * 6


def test_a_failing_task_is_named_in_the_clients_own_log_only(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()

    def clipped_sum(adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 1) -> Any:
        raise NonFiniteError("loss of lora_B.3 is nan, 17 records, largest gradient 42.125")

    bench.tasks[1].clipped_sum = clipped_sum
    with caplog.at_level("WARNING"):
        bench.start()
    assert not any(m.has_error() for _, m in bench.seen)
    # the client's own log keeps the whole text
    assert "42.125" in caplog.text


def test_an_empty_sample_sends_noise_and_is_paid_for(make_bench: MakeBench) -> None:
    # Known keys: integer noise is exactly zero in some entry once in a while.
    bench = make_bench(sample_rate=1e-6, key_source=lambda index: DeterministicKeySource(bytes([index])))
    adapter = bench.start()
    assert not any(call.size for task in bench.tasks for call in task.calls)
    assert np.count_nonzero(adapter) == adapter.size
    assert bench.client_spends() == [1] * 6


def test_samples_are_poisson_and_fresh_in_every_round(make_bench: MakeBench) -> None:
    bench = make_bench(records=400, public_records=2400, sample_rate=0.25, rounds=4)
    bench.start(rounds=4)
    calls = [call for task in bench.tasks for call in task.calls]
    sizes = np.array([call.size for call in calls])
    assert len({call.tobytes() for call in calls}) == 24
    assert len(set(sizes.tolist())) > 1  # not a fixed size
    spread = np.sqrt(400 * 0.25 * 0.75 / 24)
    assert abs(sizes.mean() - 100) < 5 * spread
    assert all((np.diff(call) > 0).all() for call in calls)


def test_another_plan_another_adapter_and_an_old_round_are_refused(make_bench: MakeBench) -> None:
    bench = make_bench(rounds=5)
    hand = Hand(bench, number=5)
    session = bench.clients.sessions[0]
    with pytest.raises(ProtocolError, match="plan"):
        session.advertise(5, b"\x01" * 32)
    inboxes = hand.until_masked()
    with pytest.raises(ProtocolError, match="plan"):
        session.release(5, b"\x01" * 32, hand.adapter, inboxes[0])
    assert bench.client_spends() == [0] * 6
    session.release(5, bench.plan.hash(), hand.adapter, inboxes[0])
    with pytest.raises(ProtocolError, match="adapter"):
        session.release(5, bench.plan.hash(), np.ones_like(hand.adapter), inboxes[0])
    with pytest.raises(ProtocolError, match="never repeated"):
        hand.advertise(session)
    assert bench.client_spends() == [1, 0, 0, 0, 0, 0]


def test_a_second_masked_vector_of_one_round_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    hand = Hand(bench)
    inboxes = hand.until_masked()
    session = bench.clients.sessions[0]
    session.release(hand.number, bench.plan.hash(), hand.adapter, inboxes[0])
    with pytest.raises(ProtocolError):
        session.release(hand.number, bench.plan.hash(), hand.adapter, inboxes[0])


def test_too_few_peers_are_refused_by_the_client_itself(make_bench: MakeBench) -> None:
    bench = make_bench()
    hand = Hand(bench)
    adverts = {s.index: hand.advertise(s) for s in hand.sessions[:4]}  # the floor is 5
    with pytest.raises(CohortError):
        hand.sessions[0].share(adverts)


def test_steps_without_a_round_are_refused(make_bench: MakeBench) -> None:
    session = make_bench().clients.sessions[0]
    for step in (lambda: session.share({}), lambda: session.sign([], []), lambda: session.unmask({})):
        with pytest.raises(ProtocolError, match="no open round"):
            step()
    plan_hash = session._plan.hash()
    with pytest.raises(ProtocolError, match="there are no keys for round 1"):
        session.release(1, plan_hash, np.zeros(60, np.float32), {})


def test_clients_with_different_models_never_unmask_together(make_bench: MakeBench) -> None:
    bench = make_bench()
    hand = Hand(bench)
    inboxes = hand.until_masked()
    for session in hand.sessions:
        adapter = hand.adapter + (session.index == 0)
        session.release(1, bench.plan.hash(), adapter.astype(np.float32), inboxes[session.index])
    signatures = {s.index: s.sign(range(6), range(6)) for s in hand.sessions}
    for session in hand.sessions:
        with pytest.raises(ProtocolError, match="message context"):
            session.unmask(signatures)


def test_a_session_checks_key_dimension_and_declared_records(
    make_bench: MakeBench, tasks_toy: Callable[..., Any]
) -> None:
    bench = make_bench()
    setup, ledger = bench.clients.sessions[0]._rounds._setup, bench.clients.ledgers[0]
    with pytest.raises(ProtocolError, match="roster"):
        ClientSession(dataclasses.replace(setup, index=1), bench.tasks[0], ledger)
    with pytest.raises(ProtocolError, match="models differ"):
        ClientSession(setup, tasks_toy(1, 61)[0], ledger)
    with pytest.raises(PrivacyError, match="declared"):
        ClientSession(setup, tasks_toy(1, 60, 181)[0], ledger)


def ask(bench: Any, action: str, content: RecordDict) -> Message:
    grid = LocalGrid(build_client_app(bench.clients.session), len(bench.tasks))
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE, action)])
    return reply


def test_malformed_messages_are_refused_with_a_number(make_bench: MakeBench) -> None:
    bench = make_bench()
    hello = {"round": 1, "plan": bench.plan.hash()}
    bad = [
        ("query.advertise", pack(round=1)),
        ("query.advertise", pack(**{**hello, "round": b"1"})),
        ("query.advertise", pack(**hello, also=1)),
        ("query.share", pack(peers=b"")),
        ("train.masked", pack(shares={1: b"x"})),
        ("query.sign", pack(shared=[1, 2])),
        ("query.unmask", RecordDict()),
    ]
    for action, content in bad:
        reply = ask(bench, action, content)
        assert reply.has_error(), action
        assert reply.error.code == 1000 + ProtocolError.exit_code
    assert bench.client_spends() == [0] * 6


def test_an_adapter_of_another_type_is_refused_before_anything_is_paid(make_bench: MakeBench) -> None:
    bench = make_bench()
    Hand(bench).until_masked()
    content = with_adapter(pack(shares={1: b"x"}), pack_adapter(np.zeros(61, np.float32)))
    reply = ask(bench, "train.masked", content)
    assert reply.error.code == 1000 + ProtocolError.exit_code
    assert bench.client_spends() == [0] * 6


def test_a_whole_round_with_a_new_session_for_every_message(make_bench: MakeBench) -> None:
    bench = make_bench(unit="none", sample_rate=1.0)
    moved = bench.start_afresh(rounds=2)
    whole = np.concatenate([task.gradients for task in bench.tasks])
    np.testing.assert_allclose(moved, -2 * whole.mean(axis=0), atol=1e-5)


def test_a_saved_session_is_sealed_and_bound_to_its_client(make_bench: MakeBench) -> None:
    bench = make_bench()
    hand = Hand(bench)
    hand.until_masked()
    first, second = bench.clients.sessions[:2]
    saved = first.save()
    state = first._rounds.current()._state
    for secret in (state.mask_secret, state.self_mask, state.own_share):
        assert len(secret) == 0 or bytes(secret) not in saved
    errors: list[type[CareflError]] = []
    for session, blob in [
        (second, saved),
        (first, saved[:20]),
        (first, saved[:-1]),
        (first, saved[:60] + bytes([saved[60] ^ 1]) + saved[61:]),
    ]:
        with pytest.raises(ProtocolError) as caught:
            session.restore(blob)
        errors.append(type(caught.value))
    assert len(errors) == 4
    first.restore(saved)
    with pytest.raises(ProtocolError, match="never repeated"):
        hand.advertise(first)


def test_a_restored_session_remembers_the_last_adapter(make_bench: MakeBench) -> None:
    """A session made anew for every message refuses what a standing one refuses."""
    bench = make_bench(rounds=2)
    bench.start()
    adapter = bench.adapters[0]
    hand = Hand(bench, number=2)
    inboxes = hand.until_masked()
    fresh = bench.fresh_session(0)
    fresh.restore(bench.clients.sessions[0].save())
    assert np.linalg.norm(adapter) > 0
    with pytest.raises(ProtocolError, match="nothing was charged"):
        fresh.release(2, bench.plan.hash(), hand.adapter + np.float32(5000.0), inboxes[0])
    assert bench.client_spends() == [1] * 6
