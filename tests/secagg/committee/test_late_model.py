"""A committee's keys made ahead: the same sum, one model, and nothing of another round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.secagg import CommitteeParameters
from tests.support.played_committee import CommitteeRehearsal

MODEL = b"m" * 32
Committee = Callable[..., CommitteeRehearsal]


@pytest.fixture
def early(committee: Committee) -> Committee:
    """A committee round whose members' keys are made ahead."""

    def make(clients: int, members: int, /, **changes: Any) -> CommitteeRehearsal:
        plain = committee(clients, members, **changes)
        fields = {**vars(plain.parameters), "model_hash": b""}
        return CommitteeRehearsal(
            CommitteeParameters(**fields),
            [one._identity for one in plain.clients.values()],
            [one._identity for one in plain.members.values()],
        )

    return make


@pytest.mark.parametrize(("members", "spare"), [(2, 0), (3, 1)])
def test_the_sum_is_exact(early: Committee, vectors: Any, members: int, spare: int) -> None:
    played = early(5, members, dropout_tolerance=spare)
    given = vectors(played)
    played.announce()
    played.bind(MODEL)
    played.submit(given)
    played.open()
    played.answer(gone=[members - 1] if spare else [])
    if spare:
        played.recover()
    assert np.array_equal(played.finish(), np.sum(list(given.values()), axis=0, dtype=np.uint32))


def test_a_model_is_bound_once_and_in_time(early: Committee, vectors: Any) -> None:
    played = early(3, 2)
    given = vectors(played)
    with pytest.raises(ProtocolError, match=r"^step order: bind is not due yet"):
        played.members[0].bind(MODEL)
    played.announce()
    for step in (
        lambda: played.clients[0].mask(given[0], played.announcements),
        lambda: played.members[0].open(played.announcements, b""),
        lambda: played.server.submitted(0, b""),
    ):
        with pytest.raises(ProtocolError, match=r"^model: .*not bound to a model yet"):
            step()
    played.bind(MODEL)
    for party in (played.members[0], played.clients[0], played.server):
        with pytest.raises(ProtocolError, match=r"^model: .*bound to a model already"):
            party.bind(b"n" * 32)
    played.submit(given)
    played.open()
    with pytest.raises(ProtocolError, match=r"^step order: bind was answered before"):
        played.members[0].bind(MODEL)


def test_all_members_must_have_announced(early: Committee) -> None:
    played = early(3, 3)
    played.server.announced(0, played.members[0].announce())
    with pytest.raises(CohortError, match=r"^lost members: .* 1, 2"):
        played.server.bind(MODEL)


@pytest.mark.parametrize("dressed", [False, True])
@pytest.mark.parametrize("other", [{"round": 8}, {"plan_hash": b"!" * 32}])
def test_keys_of_another_round_or_plan(early: Committee, vectors: Any, other: Any, dressed: bool) -> None:
    new = early(3, 2)
    old = early(3, 2, **other)
    for played in (new, old):
        played.announce()
    new.bind(MODEL)
    stale = old.announcements[1]
    if dressed:
        stale = stale[:8] + new.parameters.key_context()[:8] + stale[16:]
    check = "member key signature" if dressed else "message context"
    mixed = {**new.announcements, 1: stale}
    with pytest.raises(ProtocolError, match=f"^{check}"):
        new.clients[0].mask(vectors(new)[0], mixed)
    with pytest.raises(ProtocolError, match=f"^{check}"):
        new.members[0].open(mixed, b"")
    fresh = early(3, 2)
    with pytest.raises(ProtocolError, match=f"^{check}"):
        fresh.server.announced(1, stale)


def test_a_client_with_another_model_is_in_no_sum(early: Committee, vectors: Any) -> None:
    """Its message verifies for nobody; dressed up, its signature does not."""
    played = early(4, 2)
    given = vectors(played)
    played.announce()
    played.server.bind(MODEL)
    for index, client in played.clients.items():
        client.bind(b"!" * 32 if index == 2 else MODEL)
    message = played.clients[2].mask(given[2], played.announcements)
    with pytest.raises(ProtocolError, match=r"^message context"):
        played.server.submitted(2, message)
    dressed = message[:8] + played.server.parameters.context()[:8] + message[16:]
    with pytest.raises(ProtocolError, match=r"^submission signature"):
        played.server.submitted(2, dressed)


def test_a_member_with_another_model_opens_nothing(early: Committee, vectors: Any) -> None:
    played = early(4, 2)
    played.announce()
    played.server.bind(MODEL)
    for client in played.clients.values():
        client.bind(MODEL)
    played.members[0].bind(b"!" * 32)
    played.submit(vectors(played))
    listing = played.server.listing(0)
    with pytest.raises(ProtocolError, match=r"^message context"):
        played.members[0].open(played.announcements, listing)
    context = played.members[0]._parameters.context()
    dressed = listing[:8] + context[:8] + listing[16:]
    with pytest.raises(ProtocolError, match=r"^submission signature"):
        played.members[0].open(played.announcements, dressed)
