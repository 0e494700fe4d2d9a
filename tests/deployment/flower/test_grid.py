"""The grid hands replies on as they come: few on this machine at once, and none mixed up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.flower.grid import SuperLinkGrid
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.messages import adapter_of, pack, pack_adapter, with_adapter

NODES = range(1, 41)
PATIENCE = 30.0


class Flower:
    """Flower's grid as the relay sees it: replies that are there, handed out by id."""

    def __init__(self, answer: Callable[[Message], RecordDict | Error | None]) -> None:
        self.answer = answer
        self.pushed: list[Message] = []
        self.waiting: dict[str, Message] = {}
        self.pulled: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            name = f"{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = name
            self.pushed.append(message)
            body = self.answer(message)
            if body is not None:
                self.waiting[name] = Message(body, reply_to=message)
            yield name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self.waiting.pop(name) for name in message_ids if name in self.waiting]
        self.pulled.append(len(found))
        return found


@pytest.fixture
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Flower], SuperLinkGrid]]:
    """Return a maker of grids whose far end is Flower's relay over this Flower."""
    ends: list[Callable[[], None]] = []

    def make(flower: Flower) -> SuperLinkGrid:
        path = tmp_path / "s"
        grid = SuperLinkGrid(path)
        monkeypatch.setenv(relay.SERVER_SOCKET, str(path))
        main: Any = relay.main
        thread = threading.Thread(target=main, args=(flower, None), daemon=True)
        thread.start()
        grid.connect(PATIENCE)

        def end() -> None:
            grid.close()
            thread.join(PATIENCE)
            assert not thread.is_alive()

        ends.append(end)
        return grid

    yield make
    for end in ends:
        end()


def echo(message: Message) -> RecordDict:
    return pack(node=message.metadata.dst_node_id, upload=bytes(1000))


def questions(nodes: Iterable[int] = NODES) -> Iterator[Message]:
    for node in nodes:
        yield Message(pack(round=1), node, "train.submit", group_id="1")


def test_every_reply_comes_and_few_at_a_time(
    linked: Callable[[Flower], SuperLinkGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    flower = Flower(echo)
    grid = linked(flower)
    frames: list[int] = []
    receive = grid._receive

    def counted() -> tuple[dict[str, Any], list[RecordDict]]:
        head, bodies = receive()
        frames.append(len(bodies))
        return head, bodies

    monkeypatch.setattr(grid, "_receive", counted)
    replies = list(grid.send_and_receive(questions(), timeout=PATIENCE))
    assert [int(r.content["fields"]["node"]) for r in replies] == list(NODES)
    assert [r.metadata.src_node_id for r in replies] == list(NODES)
    assert sum(frames) == len(NODES) and frames[-1] == 0
    assert max(frames) <= 8
    assert max(flower.pulled) <= 8


def test_a_reply_is_handed_on_while_others_are_still_awaited(linked: Callable[[Flower], SuperLinkGrid]) -> None:
    flower = Flower(lambda message: echo(message) if message.metadata.dst_node_id < 3 else None)
    grid = linked(flower)
    replies = iter(grid.send_and_receive(questions(range(1, 4)), timeout=PATIENCE))
    assert next(replies).metadata.src_node_id == 1
    assert next(replies).metadata.src_node_id == 2
    late = flower.pushed[2]
    flower.waiting[late.metadata.message_id] = Message(echo(late), reply_to=late)
    assert next(replies).metadata.src_node_id == 3
    assert list(replies) == []


def test_what_nobody_asked_for_is_out_of_the_way_of_the_next_exchange(
    linked: Callable[[Flower], SuperLinkGrid],
) -> None:
    grid = linked(Flower(echo))
    next(iter(grid.send_and_receive(questions(), timeout=PATIENCE)))
    assert list(grid.get_node_ids()) == list(NODES)
    grid.send_and_receive(questions(), timeout=PATIENCE)
    (reply,) = grid.send_and_receive(questions([5]), timeout=PATIENCE)
    assert reply.metadata.src_node_id == 5


def test_silent_nodes_end_an_exchange_at_its_time_and_errors_are_handed_on(
    linked: Callable[[Flower], SuperLinkGrid],
) -> None:
    def answer(message: Message) -> RecordDict | Error | None:
        node = message.metadata.dst_node_id
        return None if node == 2 else Error(1042, "no") if node == 3 else echo(message)

    grid = linked(Flower(answer))
    replies = list(grid.send_and_receive(questions(range(1, 5)), timeout=0.3))
    assert [r.metadata.src_node_id for r in replies] == [1, 3, 4]
    assert replies[1].error.code == 1042 and replies[1].error.reason == "no"
    assert list(grid.send_and_receive([], timeout=PATIENCE)) == []


def test_a_reply_that_came_in_time_counts_however_slow_the_reader_is(
    linked: Callable[[Flower], SuperLinkGrid],
) -> None:
    # 40 replies of 1 MB do not fit a socket: the relay waits for the reader beyond the time limit.
    grid = linked(Flower(lambda message: pack(upload=bytes(1 << 20))))
    replies = iter(grid.send_and_receive(questions(), timeout=0.2))
    next(replies)
    time.sleep(0.5)
    assert len(list(replies)) == len(NODES) - 1


def test_a_lost_server_app_is_noticed_while_replies_are_read(tmp_path: Path) -> None:
    grid = SuperLinkGrid(tmp_path / "s")
    here, there = Pipe()
    grid._link = here
    replies = grid.send_and_receive(questions([1]), timeout=PATIENCE)
    there.close()
    with pytest.raises(EngineError, match="is gone"):
        list(replies)
    grid.abandon()


def frames(link: Connection) -> list[bytes]:
    found = []
    while link.poll(0):
        found.append(link.recv_bytes())
    return found


def test_an_adapter_for_many_nodes_crosses_the_socket_once() -> None:
    adapter = np.arange(100, dtype=np.float32)
    arrays = pack_adapter(adapter)
    contents = [with_adapter(pack(node=node), arrays) for node in range(30)]
    here, there = Pipe()
    relay.send(here, {}, contents)
    head, *blobs = frames(there)
    assert len(blobs) == int.from_bytes(head[:4], "big") == 1
    relay.send(here, {"op": "x"}, contents)
    _, found = relay.receive(there)
    for node, content in enumerate(found):
        assert content["fields"]["node"] == node
        assert np.array_equal(adapter_of(content, 100), adapter)
    own = [RecordDict({"fields": ConfigRecord({"a": bytes([n]), "b": bytes([n])})}) for n in (1, 2)]
    relay.send(here, {}, own)
    assert relay.receive(there)[1] == own


def test_messages_of_two_kinds_go_in_one_exchange(linked: Callable[[Flower], SuperLinkGrid]) -> None:
    """What rides alone for a node that dropped out, next to the others' questions."""
    flower = Flower(lambda message: pack(asked=message.metadata.message_type.encode()))
    grid = linked(flower)
    kinds = {1: "query.sign", 2: "query.advertise_prefetch", 3: "query.sign"}
    sent = [Message(pack(round=1), node, kind, group_id="1") for node, kind in kinds.items()]
    replies = list(grid.send_and_receive(sent, timeout=PATIENCE))
    found = {r.metadata.src_node_id: r.content["fields"]["asked"] for r in replies}
    assert found == {node: kind.encode() for node, kind in kinds.items()}
    assert {r.metadata.message_type for r in replies} == set(kinds.values())
