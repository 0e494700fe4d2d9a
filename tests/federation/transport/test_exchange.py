"""The server's wire: waiting for nodes, and messages that survive Flower's own serialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from carefl_secure.errors import CohortError
from carefl_secure.federation.transport import exchange as module
from carefl_secure.federation.transport.exchange import wait_for_nodes


class Slow:
    """An engine whose nodes come one by one."""

    def __init__(self, limit: int) -> None:
        self.asked, self.limit = 0, limit

    def get_node_ids(self) -> Iterable[int]:
        self.asked += 1
        return range(min(self.asked, self.limit), 0, -1)


def test_nodes_are_waited_for_until_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    engine = Slow(limit=5)
    assert wait_for_nodes(engine, 4, patience=60.0) == [1, 2, 3, 4]  # type: ignore[arg-type]
    assert engine.asked == 4


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    engine = Slow(limit=2)
    assert wait_for_nodes(engine, 4, patience=0.05) == [1, 2]  # type: ignore[arg-type]


def test_an_engine_without_enough_nodes_ends_in_a_cohort_error(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    monkeypatch.setattr(module.Exchange, "gather", lambda *_: None)
    with pytest.raises(CohortError):
        bench.start()
    assert bench.server_spends() == 0


def test_every_message_survives_flowers_serialisation(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bench.start()
    assert len(bench.seen) == 2 * 5 * 6
    for _, message in bench.seen:
        there = recorddict_to_proto(message.content).SerializeToString()
        proto = type(recorddict_to_proto(message.content)).FromString(there)
        assert recorddict_from_proto(proto) == message.content


def test_a_refusal_survives_flowers_serialisation(make_bench: Callable[..., Any]) -> None:
    from flwr.common.serde_utils import error_from_proto, error_to_proto

    from carefl_secure.errors import BudgetExceededError
    from carefl_secure.federation.transport.error_codes import error_of_reply, refusal

    error = refusal(BudgetExceededError("spent 7.5 of 8"))
    there = error_from_proto(error_to_proto(error))
    assert there == error
    assert isinstance(error_of_reply(there, "node 1"), BudgetExceededError)
