"""A lost committee member: made up for with a spare, refused without, at each phase of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from carefl_secure.errors import CareflError, CohortError, ConfigError, PolicyError, ProtocolError, RunError
from carefl_secure.federation.plan.cohort import AggregationConfig, Cohort
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.error_codes import Party, error_of_reply, refusal
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate, in_process
from tests.support.steps import take

CLIENTS = 5
LATE = ["query.committee_open", "query.committee_answer"]
EARLY = ["query.role", "query.committee_announce"]
ANNOUNCE = "query.committee_announce"
RECOVERY = ["query.committee_consent", "query.committee_recover"]

Drop = Callable[[int, Message], bool]


def keys(index: int) -> DeterministicKeySource:
    return DeterministicKeySource(b"spare %d" % index)


def dies(members: Collection[int], action: str, number: int, reply: bool) -> Drop:
    """Members that are gone from one step of one round on (its reply lost, or never asked)."""
    dead: set[int] = set()

    def drop(node: int, message: Message) -> bool:
        meta = message.metadata
        place = node - FIRST_NODE - CLIENTS
        answered = bool(meta.reply_to_message_id)
        due = (meta.message_type, meta.group_id, answered) == (action, str(number), reply)
        if place in members and due:
            dead.add(place)
        return place in dead and meta.group_id == str(number)  # back in the next round

    return drop


class Played:
    """One run, with everything that the server sent and heard."""

    def __init__(self, home: Path, plan: Any, tasks: list[Any]) -> None:
        self.folder = RunFolder.create(home, "")
        self.plan, self.tasks = plan, tasks
        self.actions: list[tuple[str, int]] = []

    def go(self, drop: Drop | None, monkeypatch: Any, **options: Any) -> FederationResult:
        monkeypatch.setattr("carefl_secure.federation.server.run.dropping_out", lambda *_: (drop is not None, drop))
        return federate(
            self.plan,
            self.tasks,
            np.zeros(60, np.float32),
            optimizer=FedAdam(0.1),
            folder=self.folder,
            base_hash=bytes(32),
            aggregation="committee",
            key_source=keys,
            record=self._heard,
            **options,
        )

    def _heard(self, node: int, message: Message) -> None:
        if message.metadata.reply_to_message_id:
            self.actions.append((message.metadata.message_type, node - FIRST_NODE - CLIENTS))


@pytest.fixture
def play(tmp_path: Path, plan_toy: Any, tasks_toy: Any) -> Callable[[], Played]:
    plan = plan_toy(CLIENTS, max_colluders=0, rounds=2)
    return lambda: Played(tmp_path, plan, tasks_toy(CLIENTS, 60, 30))


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("action", LATE)
def test_a_lost_member_is_made_up_for(play: Callable[[], Played], monkeypatch: Any, action: str, reply: bool) -> None:
    """Bit for bit the adapter of a run in which nobody was lost, in both rounds."""
    whole, short = play(), play()
    first = whole.go(None, monkeypatch, committee_members=3, committee_dropout_tolerance=1)
    assert not any(name in RECOVERY for name, _ in whole.actions)
    found = short.go(dies({1}, action, 1, reply), monkeypatch, committee_members=3, committee_dropout_tolerance=1)
    np.testing.assert_array_equal(found.adapter, first.adapter)
    assert [row["survivors"] for row in found.rows] == [CLIENTS, CLIENTS]
    assert [pair for pair in short.actions if pair[0] in RECOVERY] == [
        (name, member) for name in RECOVERY for member in (0, 2)
    ]
    # its key for round 2 was lost with it, so that all make new ones there
    announced = [[n for n, _ in run.actions].count(ANNOUNCE) for run in (whole, short)]
    assert announced == [3, 6]


def test_two_of_five_members_are_made_up_for(play: Callable[[], Played], monkeypatch: Any) -> None:
    whole, short = play(), play()
    options = {"committee_members": 5, "committee_dropout_tolerance": 2}
    first = whole.go(None, monkeypatch, **options)
    found = short.go(dies({0, 3}, LATE[1], 2, False), monkeypatch, **options)
    np.testing.assert_array_equal(found.adapter, first.adapter)


@pytest.mark.parametrize(
    ("action", "members", "spare"),
    [
        *[(action, {1}, 0) for action in LATE],
        *[(action, {1}, 1) for action in EARLY],
        *[(action, {0, 1}, 1) for action in LATE],
    ],
)
def test_a_loss_that_is_not_borne_is_refused(
    play: Callable[[], Played], monkeypatch: Any, action: str, members: set[int], spare: int
) -> None:
    """Without a spare, before the announcements, or one loss too many: nothing is opened."""
    played = play()
    with pytest.raises(CohortError, match="lost members"):
        played.go(dies(members, action, 1, True), monkeypatch, committee_members=3, committee_dropout_tolerance=spare)
    assert played.folder.read_metrics() == []
    early = action in EARLY
    assert len(Ledger(played.folder.ledger).events()) == (0 if early else 1)
    assert not any(name in RECOVERY for name, _ in played.actions)


@pytest.mark.parametrize("action", RECOVERY)
def test_a_member_lost_while_recovering_ends_the_round(
    play: Callable[[], Played], monkeypatch: Any, action: str
) -> None:
    played = play()
    first = dies({1}, LATE[1], 1, False)
    second = dies({2}, action, 1, True)

    def drop(node: int, message: Message) -> bool:
        return any([first(node, message), second(node, message)])

    with pytest.raises(CohortError, match="lost members"):
        played.go(drop, monkeypatch, committee_members=3, committee_dropout_tolerance=1)
    assert played.folder.read_metrics() == []


def test_a_member_gives_shares_for_no_one_that_answered(tmp_path: Path, plan_toy: Any, tasks_toy: Any) -> None:
    """Without a spare no consent is given; with one, only in order, and not after the round."""
    plan = plan_toy(CLIENTS, max_colluders=0)
    for spare in (0, 1):
        clients = in_process(
            plan,
            tasks_toy(CLIENTS, 60, 30),
            RunFolder.create(tmp_path, ""),
            aggregation="committee",
            committee_dropout_tolerance=spare,
        )
        member: Any = clients.helpers[0]
        take(member, "committee_announce", round=1, plan=plan.hash())
        with pytest.raises(ProtocolError, match="step order"):
            take(member, "committee_consent", lost=[1])
        with pytest.raises(ProtocolError, match="step order"):
            take(member, "committee_recover", consents={})
        member.close()
        with pytest.raises(ProtocolError, match="no open round"):
            take(member, "committee_consent", lost=[1])


def committee(members: int, tolerance: int) -> AggregationConfig:
    return AggregationConfig(protocol="committee", members=members, dropout_tolerance=tolerance)


def test_a_spare_is_part_of_the_agreement_and_of_the_run(play: Callable[[], Played], monkeypatch: Any) -> None:
    played = play()
    plan, tasks = played.plan, played.tasks
    public = tuple(bytes([i]) * 32 for i in range(1, 9))
    contexts = {
        Cohort(b"run", public[:5], bytes(32), public[5:], committee(3, spare))
        .committee_parameters(plan, 1, bytes(32))
        .context()
        for spare in (0, 1)
    }
    assert len(contexts) == 2
    for members, spare in ((3, 2), (2, 1), (3, -1)):
        with pytest.raises(ConfigError, match="cannot lose"):
            committee(members, spare)
    played.go(None, monkeypatch, committee_dropout_tolerance=1)
    played.tasks = tasks
    with pytest.raises(RunError, match=r"begun with aggregation committee \(dropout tolerance 1\)"):
        played.go(None, monkeypatch, committee_dropout_tolerance=0, resume=True)


@pytest.mark.parametrize("kind", [ProtocolError, CohortError, ConfigError])
def test_a_refusal_names_the_party(kind: type[CareflError]) -> None:
    """Every party under its own name and number, and never a word of its error's own text."""
    codes = set()
    parties: list[Party] = ["client", "committee member", "key holder"]
    for party in parties:
        error = refusal(kind("secret"), party)
        named = str(error_of_reply(error, "node 7"))
        assert isinstance(error_of_reply(error, "node 7"), kind)
        assert named.startswith("node 7: ") and party in named and "secret" not in named
        assert error.reason is not None and party in error.reason
        assert not any(other in named.replace("fewer clients", "") for other in parties if other != party)
        codes.add(error.code)
    assert len(codes) == 3


@pytest.mark.parametrize("clause", ["base", "epsilon", "other"])
def test_a_sites_policy_is_refused_by_its_clause(clause: str) -> None:
    there = error_of_reply(refusal(PolicyError("secret", clause)), "node 7")
    assert isinstance(there, PolicyError) and there.clause == clause
    assert "policy" in str(there) and "secret" not in str(there)
