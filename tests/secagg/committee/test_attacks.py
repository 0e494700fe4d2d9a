"""Attacks on a committee round by server, clients and members; each is refused by name."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import (
    Listing,
    Loss,
    MemberAnswer,
    MemberKey,
    Opening,
    SeedShares,
    Submission,
)
from carefl_secure.secagg.committee.recovery import read_opening
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.primitives.crypto import pack, sign, statement
from carefl_secure.secagg.primitives.framing import words_digest
from tests.support.played_committee import CommitteeRehearsal

Make = Callable[..., CommitteeRehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]


def submitted(committee: Make, vectors: Vectors, clients: int = 5, **more: Any) -> Any:
    played = committee(clients, 3, **more)
    played.announce()
    played.submit(vectors(played))
    return played


def listing_without(played: CommitteeRehearsal, member: int, hidden: set[int]) -> bytes:
    """A list that the server cut before it showed it to one member."""
    parsed = Listing.parse(played.server.listing(member), member, played.parameters)
    shown = {i: pair for i, pair in parsed.clients.items() if i not in hidden}
    return Listing(shown).encode(member, played.parameters.context())


# --- lists ---


def test_list_below_min_survivors(committee: Make, vectors: Vectors) -> None:
    """The server asks for the masks of one client, of two, of none."""
    played = submitted(committee, vectors)
    for hidden in ({1, 2, 3, 4}, {2, 3, 4}, {0, 1, 2, 3, 4}):
        with pytest.raises(CohortError, match=r"^min_survivors: [012] clients after submitting"):
            played.members[0].open(played.announcements, listing_without(played, 0, hidden))


def test_one_client_listed_many_times(committee: Make, vectors: Vectors) -> None:
    """Three entries of one client do not make a cohort, under its own or another index."""
    played = submitted(committee, vectors)
    parsed = Listing.parse(played.server.listing(0), 0, played.parameters)
    context = played.parameters.context()
    copies = Listing(dict.fromkeys(range(3), parsed.clients[1]))
    with pytest.raises(ProtocolError, match=r"^submission signature: client 0"):
        played.members[0].open(played.announcements, copies.encode(0, context))
    message = bytearray(copies.encode(0, context))
    whole = (len(message) - 18) // 3
    for place in range(3):
        message[18 + place * whole : 20 + place * whole] = b"\x01\x00"
    with pytest.raises(ProtocolError, match=r"^client list: client 1 repeats"):
        played.members[0].open(played.announcements, bytes(message))


def test_members_shown_different_lists(committee: Make, vectors: Vectors) -> None:
    """Member 0 sees all clients, the others all but client 4, to get at that client's vector."""
    played = submitted(committee, vectors)
    openings = {
        member: played.members[member].open(
            played.announcements, listing_without(played, member, {4} if member else set())
        )
        for member in range(3)
    }
    played.server.opened(0, openings[0])
    with pytest.raises(ProtocolError, match=r"^client list: member 1 opened another list"):
        played.server.opened(1, openings[1])
    for member in range(3):
        with pytest.raises(ProtocolError, match=r"^client list: member [01] was shown another"):
            played.members[member].answer(openings)
    assert all(member.phase.name == "OPENED" for member in played.members.values())


def forged_opening(played: CommitteeRehearsal, member: int, failed: tuple[int, ...]) -> bytes:
    """What a corrupt member signs in addition to its first opening."""
    context, transcript_hash = played.parameters.context(), played.server._transcript_hash
    listed = Opening.parse(played.openings[member], member, played.parameters).listed
    fields = statement(context, transcript_hash, member, listed, pack(*sorted(failed)))
    signature = sign(played.members[member]._identity, transcript.OPENING, *fields)
    return Opening(listed, failed, signature).encode(member, context)


def test_helper_equivocation(committee: Make, vectors: Vectors) -> None:
    """A corrupt member signs two openable sets, so two honest ones answer for different lists.

    The masks of client 4 then do not cancel: with all the server has got, no sum over any set of
    clients comes out. The honest server refuses the odd answer, and the two signatures convict.
    """
    played = submitted(committee, vectors)
    given_vectors = vectors(played)
    played.open()
    true = played.server.openings()
    false = {**true, 2: forged_opening(played, 2, (4,))}
    answers = {0: played.members[0].answer(true), 1: played.members[1].answer(false)}
    answers[2] = played.members[2].answer(true)
    played.server.answered(0, answers[0])
    with pytest.raises(ProtocolError, match=r"^client list: member 1 answered for another list"):
        played.server.answered(1, answers[1])
    with pytest.raises(CohortError, match=r"^lost members: nothing valid came .* members 1, 2"):
        played.finish()

    uploads = {
        i: Submission.parse(m, i, played.parameters).vector(played.parameters) for i, m in played.submissions.items()
    }
    masks = {m: MemberAnswer.parse(a, m, played.parameters).vector(played.parameters) for m, a in answers.items()}
    sums = {
        tuple(np.sum([given_vectors[i] for i in chosen], axis=0, dtype=np.uint32))
        for count in range(1, 6)
        for chosen in itertools.combinations(range(5), count)
    }
    for count in range(1, 6):
        for chosen in itertools.combinations(range(5), count):
            for used in itertools.product((0, 1), repeat=3):
                opened = np.sum([uploads[i] for i in chosen], axis=0, dtype=np.uint32)
                for member, weight in enumerate(used):
                    opened = opened - weight * masks[member]
                assert tuple(opened) not in sums
    transcript_hash = played.server._transcript_hash
    kept = read_opening(true[2], 2, transcript_hash, played.parameters)
    other = read_opening(false[2], 2, transcript_hash, played.parameters)
    assert kept.listed == other.listed
    assert kept.failed != other.failed


def test_a_member_is_asked_twice(committee: Make, vectors: Vectors) -> None:
    played = submitted(committee, vectors)
    played.open()
    again = listing_without(played, 0, {4})
    with pytest.raises(ProtocolError, match=r"^step order: open was answered before"):
        played.members[0].open(played.announcements, again)
    openings = played.server.openings()
    played.members[0].answer(openings)
    for second in (openings, {**openings, 2: forged_opening(played, 2, (4,))}):
        with pytest.raises(ProtocolError, match=r"^step order: answer was answered before"):
            played.members[0].answer(second)
    with pytest.raises(ProtocolError, match=r"^step order: announce was answered before"):
        played.members[0].announce()


def test_steps_out_of_order(committee: Make) -> None:
    member = committee(4, 3).members[0]
    for early in (
        lambda: member.open({}, b""),
        lambda: member.answer({}),
        lambda: member.consent([1]),
        lambda: member.recover({}),
    ):
        with pytest.raises(ProtocolError, match=r"^step order: .* is not due yet"):
            early()


def test_too_few_openings(committee: Make, vectors: Vectors) -> None:
    """The server hides members: without spares none, with one spare only one may be missing."""
    played = submitted(committee, vectors)
    played.open()
    mine = {0: played.openings[0], 1: played.openings[1]}
    with pytest.raises(CohortError, match=r"^lost members: .* members 2, and .* the loss of 0"):
        played.members[0].answer(mine)
    spared = submitted(committee, vectors, dropout_tolerance=1)
    spared.open()
    with pytest.raises(CohortError, match=r"^lost members: .* members 1, 2, and .* loss of 1"):
        spared.members[0].answer({0: spared.openings[0]})
    with pytest.raises(ProtocolError, match=r"^own opening"):
        spared.members[0].answer({i: spared.openings[i] for i in (1, 2)})
    with pytest.raises(ProtocolError, match=r"^message sender"):
        played.members[0].answer({**played.openings, 3: played.openings[1]})


# --- keys and envelopes ---


def test_swapped_member_key(committee: Make, vectors: Vectors) -> None:
    """The server puts its own key in a member's place."""
    played, other = committee(4, 3), committee(4, 3, seed=b"server")
    played.announce()
    foreign = other.members[1].announce()
    public = MemberKey.parse(foreign, 1, other.parameters).public
    mixed = MemberKey(public, played.announcements[1][-64:]).encode(1, played.parameters.key_context())
    vector = vectors(played)[0]
    with pytest.raises(ProtocolError, match=r"^member key signature: member 1"):
        played.clients[0].mask(vector, {**played.announcements, 1: mixed})
    with pytest.raises(ProtocolError, match=r"^member key signature: member 1"):
        other.server.announced(1, mixed)
    for wrong in ({0: played.announcements[0]}, {**played.announcements, 3: foreign}, {}):
        with pytest.raises(ProtocolError, match=r"^committee members"):
            played.clients[0].mask(vector, wrong)


def test_one_key_for_two_members(committee: Make, vectors: Vectors) -> None:
    """A corrupt member announces an honest one's key as its own, to read with its help."""
    played = committee(4, 3)
    played.announce()
    context = played.parameters.key_context()
    public = MemberKey.parse(played.announcements[0], 0, played.parameters).public
    fields = transcript.member_key(context, 1, public)
    signature = sign(played.members[1]._identity, transcript.MEMBER_KEY, *fields)
    copied = {**played.announcements, 1: MemberKey(public, signature).encode(1, context)}
    with pytest.raises(ProtocolError, match=r"^repeated key"):
        played.clients[0].mask(vectors(played)[0], copied)


def test_announcements_of_two_kinds(committee: Make, vectors: Vectors) -> None:
    """A member signs two keys: what was sealed under one list opens under no other."""
    played, twin = committee(4, 3), committee(4, 3, seed=b"twin")
    played.announce()
    mixed = {**played.announcements, 1: twin.members[1].announce()}
    given_vectors = vectors(played)
    for index in range(3):
        played.server.submitted(index, played.clients[index].mask(given_vectors[index], played.announcements))
    odd = played.clients[3].mask(given_vectors[3], mixed)
    with pytest.raises(ProtocolError, match=r"^submission signature: client 3"):
        played.server.submitted(3, odd)
    with pytest.raises(ProtocolError, match=r"^submission signature: client 0"):
        played.members[0].open(mixed, played.server.listing(0))
    with pytest.raises(ProtocolError, match=r"^own announcement"):
        played.members[1].open(mixed, played.server.listing(1))


def test_envelopes_moved_about(committee: Make, vectors: Vectors) -> None:
    """Another client's or another member's envelope in the place of the signed one."""
    played = submitted(committee, vectors)
    context = played.parameters.context()
    parsed = Listing.parse(played.server.listing(0), 0, played.parameters)
    others = Listing.parse(played.server.listing(1), 1, played.parameters)
    for false in (parsed.clients[2][1], others.clients[1][1]):
        swapped = {**parsed.clients, 1: (parsed.clients[1][0], false)}
        moved = Listing(swapped).encode(0, context)
        with pytest.raises(ProtocolError, match=r"^envelope: it is not the one that client 1"):
            played.members[0].open(played.announcements, moved)
    with pytest.raises(ProtocolError, match=r"^message sender"):
        played.members[0].open(played.announcements, played.server.listing(1))


def test_a_copied_envelope_does_not_open(committee: Make, vectors: Vectors) -> None:
    """A corrupt client sends an honest client's envelopes as its own: bound to the sender."""
    played = submitted(committee, vectors, clients=4)
    honest = Submission.parse(played.submissions[0], 0, played.parameters)
    thief = committee(4, 3)
    thief.announce()
    given_vectors = vectors(thief)
    for index in range(3):
        thief.server.submitted(index, thief.clients[index].mask(given_vectors[index], thief.announcements))
    context, transcript_hash = thief.parameters.context(), thief.server._transcript_hash
    stolen = Submission(honest.words, honest.commitments, honest.envelopes, b"")
    fields = stolen.entry(words_digest(honest.words)).fields(context, transcript_hash, 3)
    signature = sign(thief.clients[3]._identity, transcript.SUBMISSION, *fields)
    message = Submission(honest.words, honest.commitments, honest.envelopes, signature)
    thief.server.submitted(3, message.encode(3, context))
    thief.submissions[3] = message.encode(3, context)
    thief.open()
    assert Opening.parse(thief.openings[0], 0, thief.parameters).failed == (3,)


# --- replay ---


@pytest.mark.parametrize("dressed", [False, True])
@pytest.mark.parametrize("change", [{"round": 6}, {"model_hash": b"!" * 32}, {"dropout_tolerance": 1}])
def test_messages_of_another_round_or_context(
    committee: Make, vectors: Vectors, dressed: bool, change: dict[str, Any]
) -> None:
    """The same parties with the same keys: nothing of one round passes in another."""
    old, new = committee(4, 3, **change), committee(4, 3)
    given_vectors = vectors(new)
    old.run(given_vectors)

    def stale(message: bytes, early: bool = False) -> bytes:
        context = new.parameters.key_context() if early else new.parameters.context()
        return message[:8] + context[:8] + message[16:] if dressed else message

    def refused(check: str, call: Callable[[], object]) -> None:
        name = check if dressed else "message context"
        with pytest.raises(ProtocolError, match=f"^({name}|message length)"):
            call()

    key = stale(old.announcements[1], early=True)
    if "model_hash" not in change:  # the members' keys come before the model
        refused("member key signature", lambda: new.server.announced(1, key))
    new.announce()
    if "model_hash" not in change:
        refused("member key signature", lambda: new.clients[0].mask(given_vectors[0], {**new.announcements, 1: key}))
    refused("submission signature", lambda: new.server.submitted(1, stale(old.submissions[1])))
    new.submit(given_vectors)
    new.server.listing(0)
    refused("openable set signature", lambda: new.server.opened(1, stale(old.openings[1])))
    new.open()
    openings = {**new.server.openings(), 1: stale(old.openings[1])}
    refused("openable set signature", lambda: new.members[0].answer(openings))
    refused("member answer signature", lambda: new.server.answered(1, stale(old.answers[1])))
    new.answer()
    assert np.array_equal(new.finish(), np.sum([*given_vectors.values()], axis=0, dtype=np.uint32))


def test_replay_as_another(committee: Make, vectors: Vectors) -> None:
    played = submitted(committee, vectors, clients=4)
    fresh = committee(4, 3)
    fresh.announce()

    def renamed(message: bytes, index: int) -> bytes:
        return message[:6] + index.to_bytes(2, "little") + message[8:]

    message = played.submissions[1]
    for false in (message, renamed(message, 2)):
        with pytest.raises(ProtocolError, match=r"^(message sender|submission signature)"):
            fresh.server.submitted(2, false)
    played.open()
    openings = played.server.openings()
    for false in (openings[1], renamed(openings[1], 2)):
        with pytest.raises(ProtocolError, match=r"^(message sender|openable set signature)"):
            played.members[0].answer({**openings, 2: false})
    answer = played.members[1].answer(openings)
    with pytest.raises(ProtocolError, match=r"^member answer signature: member 2"):
        played.server.answered(2, renamed(answer, 2))
    played.server.answered(1, answer)
    with pytest.raises(ProtocolError, match=r"^duplicate message: member 1"):
        played.server.answered(1, answer)


def test_modes_do_not_mix(committee: Make, vectors: Vectors, rehearse: Callable[..., Any]) -> None:
    """A message of the committee is none of the peer protocol, and the other way round."""
    played, peers = submitted(committee, vectors, clients=4), rehearse(4)
    with pytest.raises(ProtocolError, match=r"^message kind"):
        PairwiseServer(peers.parameters).advertised(0, played.submissions[0])
    peers.advertise()
    fresh = committee(4, 3)
    with pytest.raises(ProtocolError, match=r"^message kind"):
        fresh.server.announced(0, peers.adverts[0])


# --- lost members ---


def lost_one(committee: Make, vectors: Vectors) -> CommitteeRehearsal:
    played: CommitteeRehearsal = submitted(committee, vectors, clients=4, dropout_tolerance=1)
    played.open()
    played.answer(gone=[2])
    return played


@pytest.mark.parametrize("lost", [[], [0], [2, 2], [3], [0, 1]])
def test_impossible_losses(committee: Make, vectors: Vectors, lost: list[int]) -> None:
    played = lost_one(committee, vectors)
    with pytest.raises(ProtocolError, match=r"^lost members"):
        played.members[0].consent(lost)


def test_no_shares_without_a_spare(committee: Make, vectors: Vectors) -> None:
    played = submitted(committee, vectors)
    played.open()
    played.answer()
    with pytest.raises(CohortError, match=r"^lost members: .* tolerates the loss of 0"):
        played.members[0].consent([1])


def test_two_stories_about_who_is_lost(committee: Make, vectors: Vectors) -> None:
    """The server tells members 0 and 1 that the other is lost, to open the seeds of both."""
    played = submitted(committee, vectors, clients=4, dropout_tolerance=1)
    played.open()
    played.answer()
    one, two = played.members[0].consent([1]), played.members[1].consent([0])
    corrupt = played.members[2]
    context, transcript_hash = played.parameters.context(), played.server._transcript_hash

    def both(lost: int) -> bytes:
        fields = statement(context, transcript_hash, 2, corrupt._settled, pack(lost))
        return Loss(corrupt._settled, (lost,), sign(corrupt._identity, transcript.LOSS, *fields)).encode(2, context)

    with pytest.raises(ProtocolError, match=r"^step order: consent was answered before"):
        played.members[0].consent([2])
    with pytest.raises(ProtocolError, match=r"^loss consents: not exactly"):
        played.members[0].recover({0: one})
    with pytest.raises(ProtocolError, match=r"^loss consents: member 2 agreed to something"):
        played.members[0].recover({0: one, 2: both(0)})
    with pytest.raises(ProtocolError, match=r"^loss consents: not exactly"):
        played.members[0].recover({0: one, 1: two, 2: both(1)})
    # two corrupt of three is more than dropout_tolerance=1 allows for, and is said so
    assert played.parameters.max_corrupt_members == 0


def test_false_seed_shares(committee: Make, vectors: Vectors) -> None:
    played = lost_one(committee, vectors)
    lost = played.server.lost()
    for member in (0, 1):
        played.server.consented(member, played.members[member].consent(lost))
    consents = played.server.consents()
    played.server.recovered(0, played.members[0].recover(consents))
    message = played.members[1].recover(consents)
    honest = SeedShares.parse(message, 1, played.parameters).by_client(lost, range(4))
    shares = tuple({**honest, (2, 3): honest[2, 3] ^ 1}.values())
    context, transcript_hash = played.parameters.context(), played.server._transcript_hash
    content = SeedShares(shares, b"").content()
    fields = statement(context, transcript_hash, 1, played.server._settled, content)
    signature = sign(played.members[1]._identity, transcript.SEED_SHARES, *fields)
    with pytest.raises(ProtocolError, match=r"^seed shares signature: member 1"):
        played.server.recovered(1, SeedShares(shares, message[-64:]).encode(1, context))
    played.server.recovered(1, SeedShares(shares, signature).encode(1, context))
    with pytest.raises(ProtocolError, match=r"^rebuilt seed: the seed of client 3 for member 2"):
        played.finish()
    assert played.server._sum.size == 0
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.finish()


@pytest.mark.parametrize("liars", [(1,), (1, 2)])
def test_a_false_seed_share_with_a_spare_one(committee: Make, vectors: Vectors, liars: tuple[int, ...]) -> None:
    """Five members, one lost of two tolerated: one false share is corrected, two are not."""
    played = committee(4, 5, dropout_tolerance=2)
    given_vectors = vectors(played)
    played.announce()
    played.submit(given_vectors)
    played.open()
    played.answer(gone=[4])
    lost = played.server.lost()
    for member in range(4):
        played.server.consented(member, played.members[member].consent(lost))
    consents = played.server.consents()
    context, transcript_hash = played.parameters.context(), played.server._transcript_hash
    for member in range(4):
        message = played.members[member].recover(consents)
        if member in liars:
            honest = SeedShares.parse(message, member, played.parameters)
            values = (honest.values[0] ^ 1, *honest.values[1:])
            content = SeedShares(values, b"").content()
            place = context, transcript_hash, member
            fields = statement(*place, played.server._settled, content)
            signature = sign(played.members[member]._identity, transcript.SEED_SHARES, *fields)
            message = SeedShares(values, signature).encode(member, context)
        played.server.recovered(member, message)
    if len(liars) == 1:
        assert np.array_equal(played.finish(), sum(given_vectors.values()))
        assert played.server.false_shares == {(1, 0)}
    else:
        with pytest.raises(ProtocolError, match=r"^rebuilt seed: the seed of client 0 for member"):
            played.finish()


# --- damage ---


def damage(data: st.DataObject, message: bytes) -> bytes:
    """Cut, draw out, or flip bits of a message; never the message itself."""
    how = data.draw(st.sampled_from(["cut", "grow", "flip"]))
    if how == "cut":
        return message[: data.draw(st.integers(0, len(message) - 1))]
    if how == "grow":
        return message + data.draw(st.binary(min_size=1, max_size=40))
    changed = bytearray(message)
    places = st.integers(0, len(message) - 1)
    for place in data.draw(st.sets(places, min_size=1, max_size=3)):
        changed[place] ^= data.draw(st.integers(1, 255))
    return bytes(changed)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_messages(committee: Make, vectors: Vectors, data: st.DataObject) -> None:
    """Whatever is done to any message, its reader raises ProtocolError, and the round goes on."""
    played = committee(3, 3, dropout_tolerance=1, dimension=2)
    given_vectors = vectors(played)

    def refused(call: Callable[[bytes], object], message: bytes) -> None:
        with pytest.raises(ProtocolError, match=r"^[a-z -]+: "):
            call(damage(data, message))

    server, members = played.server, played.members
    announced = {i: members[i].announce() for i in range(3)}
    played.announcements = announced
    refused(lambda m: server.announced(0, m), announced[0])
    for index, message in announced.items():
        server.announced(index, message)
    server.announcements()
    refused(lambda m: played.clients[0].mask(given_vectors[0], {**announced, 1: m}), announced[1])
    for index in range(3):
        message = played.clients[index].mask(given_vectors[index], announced)
        refused(lambda m, i=index: server.submitted(i, m), message)  # type: ignore[misc]
        server.submitted(index, message)
    refused(lambda m: members[0].open(announced, m), server.listing(0))
    played.open()
    openings = server.openings()
    refused(lambda m: members[0].answer({**openings, 1: m}), openings[1])
    answers = {i: members[i].answer(openings) for i in (0, 1)}
    refused(lambda m: server.answered(0, m), answers[0])
    for index, message in answers.items():
        server.answered(index, message)
    lost = server.lost()
    consents = {i: members[i].consent(lost) for i in (0, 1)}
    refused(lambda m: server.consented(0, m), consents[0])
    refused(lambda m: members[0].recover({**consents, 1: m}), consents[1])
    for index, message in consents.items():
        server.consented(index, message)
    server.consents()
    shares = {i: members[i].recover(consents) for i in (0, 1)}
    refused(lambda m: server.recovered(0, m), shares[0])
    for index, message in shares.items():
        server.recovered(index, message)
    expected = given_vectors[0] + given_vectors[1] + given_vectors[2]
    assert np.array_equal(server.finish(), expected)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=300), kind=st.integers(14, 24), data=st.data())
def test_junk_after_a_good_header(committee: Make, junk: bytes, kind: int, data: st.DataObject) -> None:
    parameters = committee(3, 2, dropout_tolerance=0).parameters
    top = b"CFSA\x02" + bytes([kind]) + b"\x00\x00" + parameters.context()[:8]
    message = data.draw(st.sampled_from([b"", top])) + junk
    for parse in (MemberKey.parse, Submission.parse, Listing.parse, Opening.parse, Loss.parse):
        with contextlib.suppress(ProtocolError):  # anything else fails the test
            parse(message, 0, parameters)
