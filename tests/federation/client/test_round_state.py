"""A client's two open rounds against a dishonest server, and across crashes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import pack, pack_adapter, piggyback, vector_hash, with_adapter
from carefl_secure.run_folder import RunFolder
from carefl_secure.secagg import Phase
from tests.support.running import in_process
from tests.support.steps import take

MakeBench = Callable[..., Any]
COUNT = 10_000


class Hand:
    """A server played by hand: round 1 up to its signatures, and keys for round 2 on the way."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.sessions: list[ClientSession] = bench.clients.sessions
        self.plan_hash = bench.plan.hash()
        self.adapter = np.zeros(bench.plan.encoding.dimension, np.float32)
        self.next_adapter = self.adapter + 1

    def everyone(self, call: Callable[[ClientSession], Any]) -> dict[int, Any]:
        return {session.index: call(session) for session in self.sessions}

    @staticmethod
    def boxes(shares: dict[int, dict[int, bytes]]) -> dict[int, dict[int, bytes]]:
        return {i: {j: box[i] for j, box in shares.items() if j != i} for i in shares}

    def masked(self) -> None:
        """Play round 1 up to the vectors."""
        adverts = self.everyone(lambda s: s.advertise(1, self.plan_hash))
        boxes = self.boxes(self.everyone(lambda s: s.share(adverts)))
        self.everyone(lambda s: s.release(1, self.plan_hash, self.adapter, boxes[s.index]))

    def signed(self) -> dict[int, bytes]:
        """Have everybody sign, and advertise for round 2."""
        clients = range(len(self.sessions))
        signatures = self.everyone(lambda s: s.sign(clients, clients))
        self.book = self.everyone(lambda s: s.advertise_prefetch(2, self.plan_hash))
        return signatures

    def unmasked(self, signatures: dict[int, bytes]) -> None:
        """Have everybody answer, and share for round 2."""
        self.everyone(lambda s: s.unmask(signatures))
        self.inboxes = self.boxes(self.everyone(lambda s: s.share_prefetch(self.book)))

    def ready(self) -> Hand:
        """Play round 1 to its end, with keys for round 2."""
        self.masked()
        self.unmasked(self.signed())
        return self

    def enter(self, session: ClientSession, number: int = 2, adapter: Any = None) -> None:
        adapter = self.next_adapter if adapter is None else adapter
        session._rounds.enter(number, self.plan_hash, vector_hash(adapter))


@pytest.fixture
def hand(make_bench: MakeBench) -> Hand:
    return Hand(make_bench())


def secrets_of(session: ClientSession) -> list[bytearray]:
    rounds = session._rounds
    states = [total._state for total in (rounds._sum, rounds._next) if total is not None]  # type: ignore[attr-defined]
    return [secret for state in states for secret in state._secrets() if secret]


def test_prefetched_keys_cost_nothing_and_are_used_once(hand: Hand) -> None:
    hand.ready()
    assert hand.bench.client_spends() == [1] * 6
    session = hand.sessions[0]
    hand.enter(session)
    assert hand.bench.client_spends() == [1] * 6
    session.release(2, hand.plan_hash, hand.next_adapter, hand.inboxes[0])
    assert hand.bench.client_spends() == [2, 1, 1, 1, 1, 1]
    with pytest.raises(ProtocolError, match="step order"):
        session.release(2, hand.plan_hash, hand.next_adapter, hand.inboxes[0])
    with pytest.raises(ProtocolError, match="round 2 comes after round 2"):
        session.advertise(2, hand.plan_hash)
    with pytest.raises(ProtocolError, match="step order"):  # a stale message closed nothing
        session.release(2, hand.plan_hash, hand.next_adapter, hand.inboxes[0])


def test_keys_for_one_round_are_refused_in_the_one_after(hand: Hand) -> None:
    hand.ready()
    for number in (3, 4):
        with pytest.raises(ProtocolError, match=f"key prefetch: there are no keys for round {number}"):
            hand.enter(hand.sessions[0], number)
    with pytest.raises(ProtocolError, match=r"no open round|never repeated"):
        hand.enter(hand.sessions[0], 1)
    hand.enter(hand.sessions[0])  # and they are still there for their own


def test_prefetched_keys_are_shown_once_for_a_round(hand: Hand) -> None:
    hand.masked()
    hand.signed()
    session = hand.sessions[0]
    for number in (2, 1):
        with pytest.raises(ProtocolError, match=r"key prefetch: .*shown before|never repeated"):
            session.advertise_prefetch(number, hand.plan_hash)
    with pytest.raises(ProtocolError, match="advertisement"):
        # newer keys, for round 3, are no part of the book of round 2
        session.advertise_prefetch(3, hand.plan_hash)
        session.share_prefetch(hand.book)


def test_another_plan_gets_no_keys_and_uses_none(hand: Hand) -> None:
    hand.ready()
    session = hand.sessions[0]
    for step in (
        lambda: session.advertise_prefetch(3, b"!" * 32),
        lambda: session._rounds.enter(2, b"!" * 32, vector_hash(hand.next_adapter)),
    ):
        with pytest.raises(ProtocolError, match="another privacy plan"):
            step()


def test_the_next_round_is_not_unmasked_before_this_one_is_over(hand: Hand) -> None:
    """While round 1 is open, every question is about round 1; of round 2 nothing can be asked."""
    hand.masked()
    signatures = hand.signed()
    session = hand.sessions[0]
    session.share_prefetch(hand.book)
    with pytest.raises(ProtocolError, match="step order: sign was answered before"):
        session.sign(range(6), range(6))
    session.unmask(signatures)
    for step in (lambda: session.sign(range(6), range(6)), lambda: session.unmask(signatures)):
        with pytest.raises(ProtocolError, match="no open round"):
            step()


def test_a_round_that_is_given_up_gives_nothing_any_more(hand: Hand) -> None:
    """Who takes up round 2 with round 1 unanswered never answers round 1."""
    hand.masked()
    signatures = hand.signed()
    session = hand.sessions[0]
    session.share_prefetch(hand.book)
    old = session._rounds.current()._state  # type: ignore[attr-defined]
    assert any(old._secrets())
    hand.enter(session)
    assert not any(old._secrets()) and old.phase == Phase.CLOSED
    with pytest.raises(ProtocolError, match="step order: unmask is not due yet"):
        session.unmask(signatures)


def test_clients_with_two_models_open_nothing(hand: Hand) -> None:
    hand.ready()
    other = hand.adapter - 1
    for session in hand.sessions:
        hand.enter(session, adapter=other if session.index == 3 else None)
    with pytest.raises(ProtocolError, match="bound to another adapter"):
        hand.sessions[3].release(2, hand.plan_hash, hand.next_adapter, hand.inboxes[3])
    for session in hand.sessions:
        adapter = other if session.index == 3 else hand.next_adapter
        session.release(2, hand.plan_hash, adapter, hand.inboxes[session.index])
    signatures = hand.everyone(lambda s: s.sign(range(6), range(6)))
    for session in hand.sessions:
        with pytest.raises(ProtocolError, match="message context"):
            session.unmask(signatures)


def test_two_books_for_two_clients(hand: Hand) -> None:
    hand.masked()
    hand.unmasked_with = hand.signed()  # type: ignore[attr-defined]
    fewer = {i: m for i, m in hand.book.items() if i != 5}
    shares = {s.index: s.share_prefetch(hand.book if s.index < 3 else fewer) for s in hand.sessions[:5]}
    session = hand.sessions[0]
    hand.enter(session)
    inbox = {j: box[0] for j, box in shares.items() if j}
    with pytest.raises(ProtocolError, match="share seal"):
        session.release(2, hand.plan_hash, hand.next_adapter, inbox)


def test_a_withheld_key_book_or_one_below_min_survivors(hand: Hand) -> None:
    hand.masked()
    hand.signed()
    session = hand.sessions[0]
    with pytest.raises(ProtocolError, match="own advertisement"):
        session.share_prefetch({i: m for i, m in hand.book.items() if i})
    with pytest.raises(CohortError, match="min_survivors"):
        session.share_prefetch({i: m for i, m in hand.book.items() if i < 4})
    with pytest.raises(ProtocolError, match="step order: bind is not due"):
        hand.enter(session)
    assert session._rounds.number == 1  # and round 1 goes on


def test_shares_without_keys_are_refused(hand: Hand) -> None:
    hand.masked()
    with pytest.raises(ProtocolError, match="key prefetch: there are no keys"):
        hand.sessions[0].share_prefetch({})


def test_a_round_with_fresh_keys_throws_away_what_was_prefetched(hand: Hand) -> None:
    hand.ready()
    session = hand.sessions[0]
    made = secrets_of(session)
    assert made
    session.advertise(2, hand.plan_hash)
    assert not any(made)
    with pytest.raises(ProtocolError, match="step order: bind is not due"):
        hand.enter(session)
    with pytest.raises(ProtocolError, match="key prefetch: there are no keys"):
        session.share_prefetch(hand.book)


def test_close_erases_both_rounds(hand: Hand) -> None:
    hand.masked()
    hand.signed()
    for session in hand.sessions:
        made = secrets_of(session)
        assert len(made) > 8  # of two rounds
        session.close()
        assert not any(made)
        assert secrets_of(session) == []


# --- what was not agreed ---


def ask(bench: Any, action: str, content: RecordDict, node: int = 0) -> Message:
    app = build_client_app(bench.clients.session, helpers=bench.clients.helper)
    grid = LocalGrid(app, bench.clients.nodes)
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE + node, action)])
    return reply


@pytest.mark.parametrize("aggregation", ["pairwise", "encrypted", "committee"])
def test_prefetches_that_were_not_agreed_are_refused(make_bench: MakeBench, aggregation: str) -> None:
    bench = make_bench(aggregation=aggregation, key_prefetch=aggregation == "encrypted")
    assert not bench.clients.cohort.prefetches
    session = bench.clients.sessions[0]
    with pytest.raises(ProtocolError, match=r"key prefetch: .*federation\.key_prefetch"):
        session.advertise_prefetch(1, bench.plan.hash())
    header = {"round": 1, "plan": bench.plan.hash()}
    stated = pack(**header)
    adapter = pack_adapter(np.zeros(60, np.float32))
    asked = [("query.advertise_prefetch", stated, 0)]
    if aggregation == "committee":
        invitation = pack(round=1, plan=bench.plan.hash(), announcements={0: b"x"})
        asked += [
            ("train.submit", piggyback(with_adapter(invitation, adapter), stated), 0),
            ("query.committee_announce_prefetch", stated, 6),
        ]
    else:
        asked += [("train.masked", piggyback(with_adapter(pack(**header, shares={1: b"x"}), adapter), stated), 0)]
    for action, content, node in asked:
        reply = ask(bench, action, content, node)
        assert reply.has_error(), action
        assert reply.error.code % 1000 == ProtocolError.exit_code
    assert bench.client_spends() == [0] * 6
    assert all(task.calls == [] for task in bench.tasks)


@pytest.mark.parametrize("action", ["query.advertise", "query.share", "query.role", "query.advertise_prefetch"])
def test_nothing_is_piggybacked_where_nothing_belongs(make_bench: MakeBench, action: str) -> None:
    bench = make_bench()
    stated = {"round": 1, "plan": bench.plan.hash()}
    contents = {
        "query.advertise": pack(**stated),
        "query.share": pack(peers={0: b""}),
        "query.role": pack(ask=1),
        "query.advertise_prefetch": pack(**stated),
    }
    reply = ask(bench, action, piggyback(contents[action], pack(**stated)))
    assert reply.error.code == 1000 + ProtocolError.exit_code
    assert bench.clients.sessions[0]._rounds.number == -1


def test_members_keys_for_another_round_are_refused(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee")
    plan, adapter = bench.plan.hash(), pack_adapter(np.zeros(60, np.float32))
    invitation = with_adapter(pack(round=2, plan=plan, announcements={0: b"x"}), adapter)
    for ride in (pack(round=3, plan=plan), pack(round=2), pack(round=2, plan=plan, model=b"m" * 32)):
        reply = ask(bench, "train.submit", piggyback(invitation, ride))
        assert reply.error.code == 1000 + ProtocolError.exit_code
        assert bench.clients.sessions[0]._rounds.number == -1
    assert bench.client_spends() == [0] * 6


def test_malformed_prefetches_are_refused_with_a_number(make_bench: MakeBench) -> None:
    bench = make_bench()
    plan = bench.plan.hash()
    for action, content in (
        ("query.advertise_prefetch", pack(round=1)),
        ("query.advertise_prefetch", pack(round=1, plan=plan, model=bytes(32))),
        ("query.advertise_prefetch", pack(round=b"1", plan=plan)),
        ("query.share_prefetch", pack(peers=b"")),
        ("query.share_prefetch", RecordDict()),
    ):
        reply = ask(bench, action, content)
        assert reply.error.code == 1000 + ProtocolError.exit_code


# --- committee members ---


def test_a_member_follows_one_plan_one_round_and_one_model(plan_toy: Any, tasks_toy: Any, tmp_path: Path) -> None:
    plan = plan_toy(5)
    folder = RunFolder.create(tmp_path, "")
    tasks = tasks_toy(5, 60, 30)
    clients = in_process(plan, tasks, folder, aggregation="committee")
    member: Any = clients.helpers[0]
    stated = plan.hash()

    def enter(number: int, plan_hash: bytes, model: bytes) -> None:
        header = {"round": number, "plan": plan_hash, "model": model}
        take(member, "committee_open", **header, announcements={}, listing=b"")

    def later(number: int, plan_hash: bytes) -> bytes:
        return take(member, "committee_announce_prefetch", round=number, plan=plan_hash)

    later(2, stated)
    with pytest.raises(ProtocolError, match="key prefetch: a key for round 2 was shown before"):
        later(2, stated)
    with pytest.raises(ProtocolError, match="key prefetch: there is no key for round 3"):
        enter(3, stated, b"m" * 32)
    for step in (lambda: later(3, b"!" * 32), lambda: enter(2, b"!" * 32, b"m" * 32)):
        with pytest.raises(ProtocolError, match="another privacy plan"):
            step()
    with pytest.raises(ProtocolError, match="own announcement"):
        enter(2, stated, b"m" * 32)
    with pytest.raises(ProtocolError, match="bound to another model"):
        enter(2, stated, b"n" * 32)
    with pytest.raises(ProtocolError, match="never repeated"):
        take(member, "committee_announce", round=2, plan=stated)
    later(4, stated)
    made = member._next
    take(member, "committee_announce", round=3, plan=stated)
    assert made._key is None and member._next is None
    with pytest.raises(ProtocolError, match="key prefetch: there is no key for round 4"):
        enter(4, stated, b"m" * 32)


# --- crashes ---


def test_restart_between_all_steps(hand: Hand) -> None:
    """Every step of two rounds by sessions that were just restored, and no step twice."""

    def again() -> None:
        for place, session in enumerate(hand.sessions):
            fresh = hand.bench.fresh_session(session.index)
            fresh.restore(session.save())
            hand.sessions[place] = fresh

    hand.masked()
    again()
    signatures = hand.signed()
    again()
    for session in hand.sessions:
        with pytest.raises(ProtocolError, match="key prefetch: keys for round 2 were shown before"):
            session.advertise_prefetch(2, hand.plan_hash)
    hand.everyone(lambda s: s.unmask(signatures))
    again()
    shares = hand.everyone(lambda s: s.share_prefetch(hand.book))
    again()
    for session in hand.sessions:
        with pytest.raises(ProtocolError, match="step order: share was answered before"):
            session.share_prefetch(hand.book)
    hand.everyone(hand.enter)
    again()
    boxes = hand.boxes(shares)
    hand.everyone(lambda s: s.release(2, hand.plan_hash, hand.next_adapter, boxes[s.index]))
    again()
    for session in hand.sessions:
        with pytest.raises(ProtocolError, match="step order: mask was answered before"):
            session.release(2, hand.plan_hash, hand.next_adapter, boxes[session.index])
    signatures = hand.everyone(lambda s: s.sign(range(6), range(6)))
    again()
    assert len(hand.everyone(lambda s: s.unmask(signatures))) == 6


def test_a_saved_session_with_two_rounds_is_sealed(hand: Hand) -> None:
    hand.masked()
    hand.signed()
    session, other = hand.sessions[:2]
    saved = session.save()
    for secret in secrets_of(session):
        assert bytes(secret) not in saved and secret.hex().encode() not in saved
    with pytest.raises(ProtocolError, match="saved session"):
        other.restore(saved)


def test_ten_thousand_damaged_sessions(hand: Hand) -> None:
    """None but the very blob opens, and then both rounds are there."""
    hand.masked()
    hand.signed()
    session = hand.sessions[0]
    blobs = [session.save(), hand.sessions[1].save()]
    rng = random.Random("sessions")
    for _ in range(COUNT):
        blob = bytearray(blobs[0])
        how = rng.randrange(4)
        if how == 0:
            del blob[rng.randrange(len(blob)) :]
        elif how == 1:
            place = rng.choice([rng.randrange(80), rng.randrange(len(blob))])
            blob[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            place = rng.randrange(len(blob))
            blob[place:place] = rng.randbytes(rng.randint(1, 9))
        else:
            cut = rng.randrange(len(blob))
            blob[cut:] = blobs[1][cut:]
        if bytes(blob) == blobs[0]:
            continue
        with pytest.raises(ProtocolError, match=r"^saved session: "):
            session.restore(bytes(blob))
        assert session._rounds._sum is session._rounds._next is None
    session.restore(blobs[0])
    assert session._rounds._sum is not None and session._rounds._next is not None
    assert session._rounds._sum is not None and session._rounds._next is not None
