"""The in-process grid behaves like a network: copies, losses, refusals, and no hidden faults."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from carefl_secure.errors import BudgetExceededError, CohortError, ConfigError, EngineError, NonFiniteError
from carefl_secure.federation.transport.error_codes import error_of_reply, is_dropout
from carefl_secure.federation.transport.flower_internals import TESTED_FLOWER
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid


def app_of(handler: Any) -> ClientApp:
    app = ClientApp()
    app.query("ask")(handler)
    return app


def echo(message: Message, context: Context) -> Message:
    index = int(context.node_config["partition-id"])
    return Message(RecordDict({"c": ConfigRecord({"index": index})}), reply_to=message)


def questions(nodes: Any, content: Any = None) -> list[Message]:
    shared = content or RecordDict({"c": ConfigRecord({"n": 1})})
    return [Message(shared, node, "query.ask") for node in nodes]


def test_installed_flower_is_a_version_the_internals_were_checked_on() -> None:
    assert any(version("flwr").startswith(known + ".") for known in TESTED_FLOWER)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_node_answers_as_itself_and_once(workers: int) -> None:
    grid = LocalGrid(app_of(echo), 4, workers=workers)
    nodes = list(grid.get_node_ids())
    assert nodes == [FIRST_NODE + i for i in range(4)]
    replies = list(grid.send_and_receive(questions(nodes)))
    assert [m.content["c"]["index"] for m in replies] == [0, 1, 2, 3]
    assert len({m.metadata.reply_to_message_id for m in replies}) == 4
    with pytest.raises(EngineError, match="use send_and_receive"):
        grid.push_messages(questions(nodes))


def test_neither_side_can_change_what_the_other_holds() -> None:
    kept = []

    def handler(message: Message, context: Context) -> Message:
        message.content["c"]["n"] = 99
        array = np.zeros(3, np.float32)
        record = RecordDict({"a": ArrayRecord({"v": Array(array)})})
        kept.append(record)
        return Message(record, reply_to=message)

    grid = LocalGrid(app_of(handler), 2)
    content = RecordDict({"c": ConfigRecord({"n": 1})})
    replies = list(grid.send_and_receive(questions(grid.get_node_ids(), content)))
    assert content["c"]["n"] == 1
    assert replies[0].content is not kept[0]
    assert replies[0].content["a"] is not kept[0]["a"]


def test_context_state_lives_as_long_as_the_grid_and_is_per_node() -> None:
    def handler(message: Message, context: Context) -> Message:
        count = context.state["c"]["n"] + 1 if "c" in context.state else 1
        context.state["c"] = ConfigRecord({"n": count})
        return Message(RecordDict({"c": ConfigRecord({"n": count})}), reply_to=message)

    grid = LocalGrid(app_of(handler), 2)
    first, second = grid.get_node_ids()
    for expected in (1, 2):
        (reply,) = grid.send_and_receive(questions([first]))
        assert reply.content["c"]["n"] == expected
    (reply,) = grid.send_and_receive(questions([second]))
    assert reply.content["c"]["n"] == 1


@pytest.mark.parametrize("kind", [BudgetExceededError, NonFiniteError, CohortError])
def test_a_refusal_becomes_a_numbered_reply_without_its_own_text(kind: type[Exception]) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise kind("the loss was 3.14159 on record 7")

    (reply,) = LocalGrid(app_of(handler), 1).send_and_receive(questions([FIRST_NODE]))
    assert reply.has_error()
    assert reply.error.code == 1000 + kind.exit_code
    assert "3.14159" not in (reply.error.reason or "")
    assert not is_dropout(reply.error)
    assert type(error_of_reply(reply.error, "node 1000")) is kind


@pytest.mark.parametrize("kind", [ConnectionResetError, TimeoutError])
def test_a_lost_connection_is_a_dropout(kind: type[Exception]) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise kind("gone")

    (reply,) = LocalGrid(app_of(handler), 1).send_and_receive(questions([FIRST_NODE]))
    assert reply.has_error()
    assert is_dropout(reply.error)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_ends_the_run_and_is_never_a_dropout(workers: int) -> None:
    def handler(message: Message, context: Context) -> Message:
        return {}["missing"]

    grid = LocalGrid(app_of(handler), 2, workers=workers)
    with pytest.raises(EngineError, match="KeyError") as caught:
        list(grid.send_and_receive(questions(grid.get_node_ids())))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_unknown_action_is_a_fault() -> None:
    grid = LocalGrid(app_of(echo), 1)
    with pytest.raises(EngineError):
        list(grid.send_and_receive([Message(RecordDict(), FIRST_NODE, "query.other")]))


def test_an_interrupt_passes_through_unchanged() -> None:
    def handler(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalGrid(app_of(handler), 1).send_and_receive(questions([FIRST_NODE])))


def test_flower_code_of_a_crash_is_a_fault_and_of_a_vanished_node_a_dropout() -> None:
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    for code in (ErrorCode.UNKNOWN, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.INVALID_FAB):
        assert not is_dropout(Error(code=code))
        assert isinstance(error_of_reply(Error(code=code), "node 1"), EngineError)
    for code in (ErrorCode.NODE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE):
        assert is_dropout(Error(code=code))


def test_a_lost_message_is_never_handled_but_a_lost_reply_was() -> None:
    handled = []

    def handler(message: Message, context: Context) -> Message:
        handled.append(int(context.node_config["partition-id"]))
        return echo(message, context)

    def drop(node: int, message: Message) -> bool:
        outgoing = not message.metadata.reply_to_message_id
        return node == (FIRST_NODE if outgoing else FIRST_NODE + 1)

    grid = LocalGrid(app_of(handler), 3, drop=drop)
    replies = list(grid.send_and_receive(questions(grid.get_node_ids())))
    assert handled == [1, 2]
    assert [m.metadata.src_node_id for m in replies] == [FIRST_NODE + 2]


def test_the_record_holds_what_the_server_sees_and_not_what_was_lost() -> None:
    seen = []
    grid = LocalGrid(
        app_of(echo),
        2,
        drop=lambda node, m: node == FIRST_NODE and bool(m.metadata.reply_to_message_id),
        record=lambda node, m: seen.append((node, bool(m.metadata.reply_to_message_id))),
    )
    list(grid.send_and_receive(questions(grid.get_node_ids())))
    assert seen == [(FIRST_NODE, False), (FIRST_NODE + 1, False), (FIRST_NODE + 1, True)]


def test_impossible_grids_and_unknown_nodes_are_refused() -> None:
    with pytest.raises(ConfigError):
        LocalGrid(app_of(echo), 0)
    with pytest.raises(ConfigError):
        LocalGrid(app_of(echo), 2, workers=0)
    grid = LocalGrid(app_of(echo), 2)
    with pytest.raises(EngineError, match="no node 5"):
        list(grid.send_and_receive(questions([5])))


def counted(handled: list[int]) -> ClientApp:
    def handler(message: Message, context: Context) -> Message:
        handled.append(int(context.node_config["partition-id"]))
        return echo(message, context)

    return app_of(handler)


def test_a_node_works_when_its_reply_is_asked_for() -> None:
    handled: list[int] = []
    grid = LocalGrid(counted(handled), 4)
    replies = iter(grid.send_and_receive(questions(grid.get_node_ids())))
    assert handled == []
    for expected in range(4):
        assert next(replies).content["c"]["index"] == expected
        assert handled == list(range(expected + 1))
    assert next(replies, None) is None


@pytest.mark.parametrize("workers", [1, 3])
def test_few_messages_and_replies_are_held_however_many_nodes_there_are(workers: int) -> None:
    most, seen = 2 * workers + 2, list[weakref.ref[RecordDict]]()
    grid = LocalGrid(app_of(echo), 40, workers=workers, record=lambda node, m: seen.append(weakref.ref(m.content)))
    held, taken = [], [0]
    gc.collect()
    gc.freeze()  # what stands already need not be searched again for every message

    def messages() -> Iterator[Message]:
        for message in questions(grid.get_node_ids()):
            taken[0] += 1
            yield message

    for place, _ in enumerate(grid.send_and_receive(messages())):
        assert taken[0] <= place + most
        gc.collect()
        held.append(sum(ref() is not None for ref in seen))
    gc.unfreeze()
    assert taken == [40] and len(held) == 40
    assert max(held) <= 2 * most
    kept = list(grid.send_and_receive(questions(grid.get_node_ids())))
    assert sum(ref() is not None for ref in seen) >= 40 == len(kept)  # what is kept is seen


@pytest.mark.parametrize("workers", [1, 3])
def test_what_nobody_asked_for_is_delivered_before_the_next_exchange(workers: int) -> None:
    handled: list[int] = []
    grid = LocalGrid(counted(handled), 20, workers=workers)
    first, second, *_ = grid.get_node_ids()
    next(iter(grid.send_and_receive(questions(grid.get_node_ids()))))
    assert len(handled) <= 2 * workers
    (reply,) = grid.send_and_receive(questions([second]))
    assert reply.content["c"]["index"] == 1
    assert sorted(handled) == sorted([*range(20), 1])
    grid.send_and_receive(questions([first]))
    list(grid.send_and_receive(questions([second])))
    assert handled[-2:] == [0, 1]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_closed_grid_delivers_no_more_and_waits_for_what_is_in_hand(workers: int) -> None:
    begun, ended = [], []

    def handler(message: Message, context: Context) -> Message:
        begun.append(threading.get_ident())
        reply = echo(message, context)
        ended.append(threading.get_ident())
        return reply

    grid = LocalGrid(app_of(handler), 50, workers=workers)
    replies = iter(grid.send_and_receive(questions(grid.get_node_ids())))
    next(replies)
    grid.close()
    assert len(begun) == len(ended) <= 2 * workers
    assert list(replies) == []
    grid.close()
    list(grid.send_and_receive(questions([FIRST_NODE])))
    assert len(ended) <= 2 * workers + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_fault_comes_after_earlier_replies_and_ends_the_exchange(workers: int) -> None:
    handled: list[int] = []

    def handler(message: Message, context: Context) -> Message:
        handled.append(int(context.node_config["partition-id"]))
        if context.node_config["partition-id"] == 2:
            raise KeyError("missing")
        return echo(message, context)

    grid = LocalGrid(app_of(handler), 30, workers=workers)
    got = []
    with pytest.raises(EngineError, match="KeyError"):
        for reply in grid.send_and_receive(questions(grid.get_node_ids())):
            got.append(reply.content["c"]["index"])
    assert got == [0, 1]
    before = len(handled)
    assert before <= 2 + 2 * workers
    list(grid.send_and_receive(questions([FIRST_NODE])))
    assert len(handled) == before + 1
