"""What one lying party costs a run: its own place in the rounds, and not the run.

Nine clients of which seven must survive; client 3 misbehaves in one way each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.transport.error_codes import refusal
from carefl_secure.federation.transport.exchange import Faults
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import Fields, pack
from tests.support import federation

LIAR, CLIENTS, NEEDED, ROUNDS = 3, 9, 7, 3
Lie = Callable[[Message, Message], RecordDict | Error | None]


def flipped(octets: bytes, place: int = 40) -> bytes:
    return octets[:place] + bytes([octets[place] ^ 1]) + octets[place + 1 :]


def one_bit(message: Message, reply: Message) -> RecordDict | None:
    """A flipped bit in its upload."""
    if not message.metadata.message_type.startswith("train."):
        return None
    return pack(upload=flipped(Fields(reply.content, "upload").octets("upload")))


def refuses(message: Message, reply: Message) -> Error | None:
    """It refuses a step."""
    step = message.metadata.message_type in ("query.sign", "train.submit")
    return refusal(ProtocolError("no")) if step else None


def _claimed(place: int, message: Message, reply: Message) -> RecordDict | None:
    step = message.metadata.message_type
    if step == "query.advertise":
        octets = Fields(reply.content, "index", "message").octets("message")
        return pack(index=place, message=octets)
    return pack(role=0, index=place) if step == "query.role" else None


def impostor(message: Message, reply: Message) -> RecordDict | None:
    """It claims another client's place."""
    return _claimed(8, message, reply)


def foreign_field(message: Message, reply: Message) -> RecordDict | None:
    """A record that nobody expects."""
    step = message.metadata.message_type in ("query.unmask", "train.submit")
    return pack(nonsense=1) if step else None


def no_such_place(message: Message, reply: Message) -> RecordDict | None:
    """An index outside the roster."""
    return _claimed(77, message, reply)


def error_code(message: Message, reply: Message) -> Error | None:
    """An error number that is neither a dropout nor ours."""
    step = message.metadata.message_type in ("query.share", "train.submit")
    return Error(code=77, reason="boom") if step else None


def not_bytes(message: Message, reply: Message) -> RecordDict | None:
    """A number where bytes are due."""
    step = message.metadata.message_type in ("train.masked", "train.submit")
    return pack(upload=5) if step else None


LIES = (one_bit, refuses, impostor, foreign_field, no_such_place, error_code, not_bytes)


def lying(lie: Lie, liar: int = LIAR) -> type[LocalGrid]:
    """A grid on which one node's replies go through a lie."""

    class Grid(LocalGrid):
        def _exchange(self, message: Message) -> Message | None:
            reply = super()._exchange(message)
            if message.metadata.dst_node_id != FIRST_NODE + liar or reply is None:
                return reply
            if reply.has_error():
                return reply
            other = lie(message, reply)
            return reply if other is None else Message(other, reply_to=message)

    return Grid


@pytest.fixture
def play(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[dict[str, Any]]]]:
    """Run three rounds with a liar; return the bench and the faults that were noted."""

    def run(lie: Lie, liar: int = LIAR, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
        monkeypatch.setattr(federation, "LocalGrid", lying(lie, liar))
        noted: list[dict[str, Any]] = []
        real = Faults.add

        def add(self: Faults, number: int, step: str, node: int, *rest: Any) -> None:
            real(self, number, step, node, *rest)
            out = node in self.excluded
            noted.append({"round": number, "node": node, "step": step, "excluded": out})

        monkeypatch.setattr(Faults, "add", add)
        bench = make_bench(clients=CLIENTS, rounds=ROUNDS, **options)
        bench.start(rounds=ROUNDS)
        return bench, noted

    return run


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("aggregation", ["pairwise", "committee", "encrypted"])
def test_one_bad_message_is_a_dropout_of_its_sender(play: Any, lie: Lie, aggregation: str) -> None:
    bench, noted = play(lie, aggregation=aggregation)
    assert [row["round"] for row in bench.rows] == [1, 2, 3]
    assert all(NEEDED <= row["survivors"] <= CLIENTS for row in bench.rows)
    assert {entry["node"] for entry in noted} == {FIRST_NODE + LIAR}
    assert noted[0]["round"] == 1


def test_the_third_bad_message_excludes_its_sender(play: Any) -> None:
    """It is asked for nothing more, neither a vector nor keys."""
    _, noted = play(one_bit)
    assert [entry["excluded"] for entry in noted] == [False, False, True]
    assert [entry["round"] for entry in noted] == [1, 2, 3]
    assert Faults.LIMIT == 3


def test_too_many_liars_end_the_run_with_the_first_fault(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """min_survivors decides: three of nine are one too many."""

    class Grid(LocalGrid):
        def _exchange(self, message: Message) -> Message | None:
            reply = super()._exchange(message)
            if reply is None or message.metadata.dst_node_id >= FIRST_NODE + 3:
                return reply
            other = one_bit(message, reply)
            return reply if other is None else Message(other, reply_to=message)

    monkeypatch.setattr(federation, "LocalGrid", Grid)
    bench = make_bench(clients=CLIENTS, rounds=ROUNDS)
    with pytest.raises(ProtocolError, match=r"^upload signature: client 0 .*min_survivors: 6"):
        bench.start()
    assert bench.rows == []


@pytest.mark.parametrize("recipients", [range(CLIENTS), range(1), range(4, 9)])
def test_shares_that_do_not_open_are_their_senders_fault(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, recipients: range
) -> None:
    """Client 3 seals shares that do not open: to all, to one, or to more than may drop out.

    Where too few are left the round is lost and costs the recipients nothing; who lied is named,
    excluded, and the run goes on.
    """
    bench = make_bench(clients=CLIENTS, rounds=ROUNDS, max_colluders=1)
    session = bench.clients.sessions[LIAR]
    real, real_later = session.share, session.share_prefetch
    accused: list[tuple[int, int]] = []

    def spoil(shares: dict[int, bytes]) -> dict[int, bytes]:
        return {j: flipped(m, len(m) - 1) if j in recipients else m for j, m in shares.items()}

    session.share = lambda advertisements: spoil(real(advertisements))
    session.share_prefetch = lambda advertisements: spoil(real_later(advertisements))
    original = Faults.__init__

    def watched(self: Faults) -> None:
        original(self)
        self.note = lambda number, step, node, error, out: accused.append((node, getattr(error, "sender", -1)))

    monkeypatch.setattr(Faults, "__init__", watched)
    bench.start(rounds=ROUNDS)
    stated = {sender for _, sender in accused if sender >= 0}
    assert stated == {LIAR}
    survivors = [row["survivors"] for row in bench.rows]
    if len(recipients) == 1:  # one word against another: both are in the log
        assert survivors[0] == CLIENTS - 1
    else:
        assert survivors == [CLIENTS - 1] * (ROUNDS - 1)  # the first round is lost
        others = [i for i in range(CLIENTS) if i != LIAR and i in recipients]
        assert [bench.client_spends()[i] for i in others] == [ROUNDS - 1] * len(others)


def test_the_event_log_names_the_sender_and_the_check(tmp_path: Any) -> None:
    from carefl_secure.federation.server.event_log import EventLog
    from carefl_secure.secagg import SenderError

    log = EventLog(tmp_path / "server.jsonl")
    log.fault(2, "train.masked", 1003, ProtocolError("upload signature: client 3 did not"), True)
    log.fault(2, "train.masked", 1000, SenderError(ProtocolError("node 1000: what"), 3), False)
    first, second = (json.loads(line) for line in (tmp_path / "server.jsonl").open())
    assert first["check"] == "upload signature" and first["node"] == 1003 and first["excluded"]
    assert second["accused"] == 3 and not second["excluded"]
