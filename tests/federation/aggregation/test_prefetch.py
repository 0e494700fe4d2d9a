"""Keys made ahead in a whole run: fewer exchanges, the same adapter, and nobody bleeds out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.strategy import SecureSumStrategy
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import pack_adapter, piggybacked
from carefl_secure.noise import DeterministicKeySource

MakeBench = Callable[..., Any]
Drop = Callable[[int, Message], bool]
PLAIN = ["query.advertise", "query.share"]
AHEAD = ["train.masked", "query.sign", "query.unmask"]
BARE = ["query.advertise_prefetch", "query.share_prefetch"]


class Counting(LocalGrid):
    """Counts the exchanges of every round, and what each of them was about."""

    exchanges: dict[int, list[set[str]]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        if sent:
            number = int(sent[0].metadata.group_id)
            self.exchanges[number].append({m.metadata.message_type for m in sent})
        return super().send_and_receive(sent, timeout=timeout)


class Played:
    """A run over some rounds, with everything that was counted on the way."""

    def __init__(
        self,
        bench: Any,
        rounds: int,
        drop: Drop | None = None,
        *,
        session: Callable[[int], ClientSession] | None = None,
        keep_state: bool = False,
    ) -> None:
        made = bench.clients
        self.bench, self.rows, self.seen = bench, [], []  # type: ignore[var-annotated]
        app = build_client_app(session or made.session, made.keep_refusal, keep_state=keep_state, helpers=made.helper)
        grid = Counting(app, made.nodes, drop=drop, record=lambda node, message: self.seen.append(message))
        grid.exchanges = self.exchanges = defaultdict(list)
        strategy = SecureSumStrategy(
            bench.plan,
            made.cohort,
            bench.ledger,
            FedAvg(1.0),
            on_round=lambda row, adapter: self.rows.append(row),
            last=rounds,
        )
        zeros = np.zeros(bench.plan.encoding.dimension, np.float32)
        result = strategy.start(grid, pack_adapter(zeros), num_rounds=rounds)
        self.adapter: NDArray[np.float32] = result.arrays["adapter"].numpy()

    @property
    def counts(self) -> list[int]:
        return [len(self.exchanges[number]) for number in sorted(self.exchanges)]

    @property
    def survivors(self) -> list[int]:
        return [row["survivors"] for row in self.rows]


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"ahead %d" % index)


def losing(plan: dict[int, set[tuple[str, int]]], *, replies: bool = True) -> Drop:
    """Lose what the named clients are asked (or answer) in one step of the named rounds."""

    def drop(node: int, message: Message) -> bool:
        meta = message.metadata
        lost = plan.get(int(meta.group_id), set())
        is_reply = bool(meta.reply_to_message_id)
        return is_reply == replies and (meta.message_type, node - FIRST_NODE) in lost

    return drop


# --- how many exchanges ---


def table(first: str) -> list[list[str]]:
    """The rows of the table in docs/protocol.md whose header starts with a word."""
    text = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


MODES = {row[0]: [int(cell) for cell in row[1:]] for row in table("mode")}


def test_the_documented_exchanges_are_those_of_a_round() -> None:
    assert list(MODES) == ["pairwise", "committee", "encrypted"]
    assert [row[0].strip("`") for row in table("exchange of round r")] == AHEAD
    assert MODES["pairwise"] == [5, 3, 5]
    assert MODES["committee"] == [5, 3, 4]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("aggregation", list(MODES))
def test_exchanges_of_every_round(make_bench: MakeBench, aggregation: str, ahead: bool) -> None:
    """As the document says; the first one of two modes also asks everybody for its role."""
    first, later, without = MODES[aggregation]
    bench = make_bench(aggregation=aggregation, key_prefetch=ahead, rounds=4, unit="none")
    played = Played(bench, 4)
    assert played.counts == [first, *[later if ahead else without] * 3]
    assert played.survivors == [6] * 4
    riding = [m for m in played.seen if piggybacked(m.content) is not None]
    assert bool(riding) == (ahead and aggregation != "encrypted")
    if aggregation == "pairwise" and ahead:
        assert [sorted(names) for names in played.exchanges[2]] == [[name] for name in AHEAD]
        assert not any(m.metadata.group_id == "4" for m in riding if _asks_for_keys(m))


def _asks_for_keys(message: Message) -> bool:
    """Tell a question with a ride that wants keys, which the last round has none of."""
    meta = message.metadata
    return not meta.reply_to_message_id and meta.message_type in (*AHEAD[1:], *BARE)


def test_exchanges_where_clients_drop_out_and_come_back(make_bench: MakeBench) -> None:
    """One of seven is lost in every round before its vector, and takes part in the next one."""
    bench = make_bench(clients=7, max_colluders=0, unit="none", rounds=6)
    lost = {number: {("train.masked", number % 7)} for number in range(1, 7)}
    played = Played(bench, 6, losing(lost))
    assert played.counts == [5, 3, 3, 3, 3, 3]
    assert played.survivors == [6] * 6
    # who came back was asked for its keys in the very exchange that asks the others to sign
    assert played.exchanges[2][1:] == [
        {"query.sign", "query.advertise_prefetch"},
        {"query.unmask", "query.share_prefetch"},
    ]
    masked = [m for m in played.seen if m.metadata.message_type == "train.masked"]
    asked = [m for m in masked if not m.metadata.reply_to_message_id]
    assert len(asked) == 6 * 7


@pytest.mark.parametrize("replies", [False, True])
@pytest.mark.parametrize("action", AHEAD[1:])
def test_who_is_lost_after_its_vector_misses_one_round(make_bench: MakeBench, action: str, replies: bool) -> None:
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=4)  # the floor is 6
    played = Played(bench, 4, losing({2: {(action, 3)}}, replies=replies))
    assert played.counts == [5, 3, 3, 3]
    assert played.survivors == [8, 8, 7, 8]


@pytest.mark.parametrize("action", AHEAD[1:])
def test_too_few_keys_ahead_are_made_anew(make_bench: MakeBench, action: str) -> None:
    """Two lost and six left: two more would break the floor, so the next round has its own keys."""
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=4)
    played = Played(bench, 4, losing({2: {(action, 3), (action, 5)}}))
    assert played.counts == [5, 3, 5, 3]
    assert played.survivors == [8, 8, 8, 8]


def test_a_member_lost_with_its_answer_ends_a_round_without_spares(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee", rounds=3)
    with pytest.raises(CohortError):
        Played(bench, 3, losing({2: {("query.committee_answer", 7)}}))
    assert bench.releases() == 1


def test_one_in_eight_lost_anywhere_again_and_again_never_bleeds_out(make_bench: MakeBench) -> None:
    rng = np.random.default_rng(5)
    rounds = 24
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=rounds)
    steps = [*PLAIN, *AHEAD, *BARE]
    victims = {number: int(rng.integers(8)) for number in range(1, rounds + 1)}
    phases = {number: int(rng.integers(len(steps))) for number in range(1, rounds + 1)}

    def drop(node: int, message: Message) -> bool:
        number = int(message.metadata.group_id)
        action = message.metadata.message_type
        # gone from that step on, until the next round
        late = [*PLAIN, "train.masked", "query.sign", BARE[0], "query.unmask", BARE[1]]
        if node - FIRST_NODE != victims[number] or action not in late:
            return False
        return late.index(action) >= phases[number]

    played = Played(bench, rounds, drop)
    assert len(played.rows) == bench.releases() == rounds
    assert min(played.survivors) >= 6
    assert np.mean(played.survivors) > 6.5
    assert played.counts[0] == 5 and set(played.counts[1:]) == {3}
    assert min(played.survivors[-6:]) >= min(played.survivors[:6])


def test_a_client_that_is_gone_for_rounds_comes_back(make_bench: MakeBench) -> None:
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=5)

    def drop(node: int, message: Message) -> bool:
        return node == FIRST_NODE + 2 and message.metadata.group_id in ("2", "3")

    played = Played(bench, 5, drop)
    assert played.survivors == [8, 7, 7, 7, 8]
    assert played.counts == [5, 3, 3, 3, 3]


def test_a_refusal_of_who_dropped_out_is_met_in_a_round_of_its_own(make_bench: MakeBench) -> None:
    """It takes nothing from the round that goes on, and does not go unnoticed."""
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=4)
    lost = bench.clients.sessions[3]

    def refuse(*_: object) -> bytes:
        raise ProtocolError("not me")

    lost.advertise_prefetch = refuse
    drop = losing({1: {("train.masked", 3)}, 2: {("train.masked", 3)}})
    played = Played(bench, 2, drop)
    assert played.counts == [5, 5] and played.survivors == [7, 7]
    bench = make_bench(clients=8, max_colluders=0, unit="none", rounds=4)
    lost = bench.clients.sessions[3]
    first = lost.advertise

    def at_first(number: int, *rest: Any) -> bytes:
        if number > 1:
            raise ProtocolError("not me")
        return bytes(first(number, *rest))

    lost.advertise, lost.advertise_prefetch = at_first, refuse
    played = Played(bench, 2, drop)  # a refusal in its own round is a dropout of that round
    assert played.survivors == [7, 7] and bench.releases() == 2


# --- the same result ---


@pytest.mark.parametrize("aggregation", ["pairwise", "committee"])
@pytest.mark.parametrize("unit", ["record", "none"])
def test_the_adapter_is_that_of_the_plain_form_bit_for_bit(make_bench: MakeBench, aggregation: str, unit: str) -> None:
    """The order in which keys are drawn changes neither the sample nor the noise."""
    found = []
    lost = {1: {("train.masked", 1)}, 2: {("train.masked", 4)}, 3: {("train.masked", 4)}}
    for ahead in (True, False):
        bench = make_bench(
            7, max_colluders=0, unit=unit, rounds=4, aggregation=aggregation, key_prefetch=ahead, key_source=keys
        )
        found.append(Played(bench, 4, losing(lost) if aggregation == "pairwise" else None))
    assert found[0].counts < found[1].counts
    assert found[0].survivors == found[1].survivors
    np.testing.assert_array_equal(found[0].adapter, found[1].adapter)
    assert np.count_nonzero(found[0].adapter) == found[0].adapter.size


@pytest.mark.parametrize("aggregation", ["pairwise", "committee"])
def test_a_new_session_for_every_message(make_bench: MakeBench, aggregation: str) -> None:
    """The node's own store holds both rounds, and every step goes on from it."""
    bench = make_bench(7, max_colluders=0, unit="none", sample_rate=1.0, aggregation=aggregation)
    drop = losing({1: {("train.masked", 2)}} if aggregation == "pairwise" else {})
    played = Played(bench, 3, drop, session=bench.fresh_session, keep_state=True)
    assert played.counts == [5, 3, 3]
    assert played.survivors == [7 - (aggregation == "pairwise"), 7, 7]


@pytest.mark.parametrize("aggregation", ["pairwise", "committee"])
def test_what_is_paid_and_released_is_what_it_was(make_bench: MakeBench, aggregation: str) -> None:
    bench = make_bench(rounds=3, aggregation=aggregation)
    spent: list[tuple[int, int]] = []
    task, original = bench.tasks[2], bench.tasks[2].clipped_sum

    def clipped_sum(adapter: Any, indices: Any, number: int = 1) -> Any:
        spent.append((len(bench.clients.ledgers[2].events()), bench.server_spends()))
        return original(adapter, indices, number)

    task.clipped_sum = clipped_sum
    Played(bench, 3)
    assert spent == [(1, 1), (2, 2), (3, 3)]
    assert bench.client_spends() == [3] * 6 and bench.releases() == 3


def test_a_resumed_run_begins_in_the_plain_form(make_bench: MakeBench) -> None:
    """What was made ahead is thrown away; a new server knows nothing of it."""
    bench = make_bench(rounds=3)
    bench.start(rounds=1)  # of three planned: keys for round 2 are there
    held = [session._rounds._next for session in bench.clients.sessions]
    assert all(held)
    bench.seen.clear()
    bench.start(rounds=2, finished=1)
    actions = [m.metadata.message_type for _, m in bench.seen if m.metadata.group_id == "2"]
    assert {"query.advertise", "query.share"} <= set(actions)
    states = [one._state for one in held]
    assert not any(secret for state in states for secret in state._secrets())
    assert bench.client_spends() == [3] * 6


def test_replies_hold_keys_for_the_next_round_and_nothing_else(make_bench: MakeBench) -> None:
    bench = make_bench(rounds=3)
    played = Played(bench, 3)
    allowed = {"query.sign": {"index", "message"}, "query.unmask": {"shares", "shares.peers"}}
    riding = 0
    for message in played.seen:
        ride = piggybacked(message.content)
        if not message.metadata.reply_to_message_id or ride is None:
            continue
        riding += 1
        assert list(message.content) == ["fields", "next"]
        assert set(ride["fields"]) == allowed[message.metadata.message_type]
    assert riding == 2 * 2 * 6  # two kinds, in two of three rounds, of six clients
