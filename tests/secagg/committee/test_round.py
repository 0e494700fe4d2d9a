"""Committee rounds: one message per client, exact sums, lost members and unopenable envelopes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.noise import DeterministicKeySource, add_masks
from carefl_secure.secagg import CommitteeClient, CommitteeMember
from carefl_secure.secagg.committee import client as client_module
from carefl_secure.secagg.committee.messages import Submission
from carefl_secure.secagg.primitives.crypto import sign
from carefl_secure.secagg.primitives.framing import words_digest
from tests.support.played_committee import CommitteeRehearsal

Make = Callable[..., CommitteeRehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]


def total(vectors: dict[int, npt.NDArray[Any]], members: Any) -> npt.NDArray[Any]:
    summed = np.zeros_like(vectors[0])
    for index in members:
        summed = summed + vectors[index]
    return summed


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exact_or_nothing(committee: Make, vectors: Vectors, data: st.DataObject) -> None:
    """Any clients may never answer; members are lost at any step, within and beyond the spare."""
    size = data.draw(st.integers(2, 5))
    clients = data.draw(st.integers(3, 6))
    played = committee(
        clients,
        size,
        dropout_tolerance=data.draw(st.integers(0, (size - 1) // 2)),
        bits=data.draw(st.sampled_from([16, 32])),
        dimension=data.draw(st.sampled_from([1, 33])),
    )
    spare = played.parameters.dropout_tolerance
    silent = data.draw(st.sets(st.integers(0, clients - 1), max_size=1))
    opening = data.draw(st.sets(st.integers(0, size - 1), max_size=2))
    answering = data.draw(st.sets(st.integers(0, size - 1), max_size=1))
    given_vectors = vectors(played)
    sent = {i: v for i, v in given_vectors.items() if i not in silent}

    def play() -> npt.NDArray[Any]:
        played.announce()
        played.submit(sent)
        played.open(gone=opening)
        played.answer(gone=answering)
        if played.server.lost():
            played.recover()
        return played.finish()

    if len(sent) < 3:
        with pytest.raises(CohortError, match=r"^min_survivors: 2 clients after submitting"):
            play()
    elif len(opening | answering) > spare:
        with pytest.raises(CohortError, match=r"^lost members: nothing valid came from committee"):
            play()
    else:
        opened = play()
        assert opened.dtype == played.parameters.dtype
        assert np.array_equal(opened, total(given_vectors, sent))


def test_one_message_and_no_more(committee: Make, vectors: Vectors) -> None:
    played = committee(4, 3, dimension=1000)
    given_vectors = vectors(played)
    before = {i: v.copy() for i, v in given_vectors.items()}
    assert np.array_equal(played.run(given_vectors), total(given_vectors, range(4)))
    assert all(np.array_equal(before[i], v) for i, v in given_vectors.items())
    assert {len(m) for m in played.submissions.values()} == {16 + 4000 + 3 * (32 + 1168) + 64}
    with pytest.raises(ProtocolError, match=r"^step order: mask was answered before"):
        played.clients[0].mask(given_vectors[0], played.announcements)
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.server.finish()


def broken_envelope(played: CommitteeRehearsal, index: int, member: int, vector: Any) -> bytes:
    """The message of a client that sealed rubbish for one member and signed it."""
    context = played.parameters.context()
    honest = played.clients[index].mask(vector, played.announcements)
    parsed = Submission.parse(honest, index, played.parameters)
    envelopes = list(parsed.envelopes)
    envelopes[member] = bytes(len(envelopes[member]))
    changed = Submission(parsed.words, parsed.commitments, tuple(envelopes), b"")
    _, transcript_hash = client_module.read_announcements(played.announcements, played.parameters)
    fields = changed.entry(words_digest(parsed.words)).fields(context, transcript_hash, index)
    signature = sign(played.clients[index]._identity, b"submission", *fields)
    return Submission(parsed.words, parsed.commitments, tuple(envelopes), signature).encode(index, context)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_client_that_fails_at_one_member_is_left_out_by_all(committee: Make, vectors: Vectors, spare: int) -> None:
    played = committee(5, 3, dropout_tolerance=spare)
    given_vectors = vectors(played)
    played.announce()
    played.submit({i: given_vectors[i] for i in range(4)})
    played.submissions[4] = broken_envelope(played, 4, 1, given_vectors[4])
    played.server.submitted(4, played.submissions[4])
    played.open()
    openings = played.server.openings()
    assert played.server.left_out() == (4,)
    assert played.server.clients() == (0, 1, 2, 3)
    for member in range(3):
        played.server.answered(member, played.members[member].answer(openings))
    with pytest.raises(ProtocolError, match=r"^left-out client: the vectors of clients \[4\]"):
        played.finish()
    with pytest.raises(ProtocolError, match=r"^left-out client: client 0 is not"):
        played.server.withdraw(0, played.submissions[0])
    played.server.withdraw(4, played.submissions[4])
    with pytest.raises(ProtocolError, match=r"^left-out client: client 4 is not"):
        played.server.withdraw(4, played.submissions[4])
    assert np.array_equal(played.finish(), total(given_vectors, range(4)))


def test_too_few_openable_clients(committee: Make, vectors: Vectors) -> None:
    played = committee(3, 2)
    given_vectors = vectors(played)
    played.announce()
    played.submit({0: given_vectors[0], 1: given_vectors[1]})
    played.server.submitted(2, broken_envelope(played, 2, 0, given_vectors[2]))
    played.open()
    with pytest.raises(CohortError, match=r"^min_survivors: 2 clients after opening"):
        played.server.openings()
    with pytest.raises(CohortError, match=r"^min_survivors: 2 clients after opening"):
        played.members[1].answer(played.openings)
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.finish()


def test_a_member_missing_from_the_start(committee: Make) -> None:
    played = committee(4, 3, dropout_tolerance=1)
    for member in (0, 2):
        played.server.announced(member, played.members[member].announce())
    with pytest.raises(CohortError, match=r"^lost members: nothing valid came .* members 1"):
        played.server.announcements()


@pytest.mark.parametrize(("size", "spare", "lost"), [(3, 1, [2]), (5, 1, [0]), (5, 2, [1, 3])])
@pytest.mark.parametrize("late", [False, True])
def test_lost_members_are_made_up_for(
    committee: Make, vectors: Vectors, size: int, spare: int, lost: list[int], late: bool
) -> None:
    played = committee(6, size, dropout_tolerance=spare, dimension=100)
    given_vectors = vectors(played)
    played.announce()
    played.submit(given_vectors)
    played.open(gone=[] if late else lost)
    played.answer(gone=lost if late else [])
    assert played.server.lost() == tuple(lost)
    played.recover()
    assert np.array_equal(played.finish(), total(given_vectors, range(6)))


def test_a_member_lost_during_recovery_ends_the_round(committee: Make, vectors: Vectors) -> None:
    played = committee(4, 3, dropout_tolerance=1)
    played.announce()
    played.submit(vectors(played))
    played.open(gone=[2])
    played.answer()
    lost = played.server.lost()
    played.server.consented(0, played.members[0].consent(lost))
    with pytest.raises(CohortError, match=r"^lost members: nothing valid came .* members 1"):
        played.server.consents()


def test_members_forget(committee: Make, vectors: Vectors) -> None:
    plain, spared = committee(4, 3), committee(4, 3, dropout_tolerance=1)
    plain.run(vectors(plain))
    spared.announce()
    spared.submit(vectors(spared))
    spared.open(gone=[0])
    spared.answer()
    kept = list(spared.members[1]._contents.values())
    assert kept
    spared.recover()
    for member in (*plain.members.values(), spared.members[1], spared.members[2]):
        assert member._key is None
        assert not member._contents
    assert all(content == bytes(len(content)) for content in kept)
    with pytest.raises(ProtocolError, match=r"^step order: recover was answered before"):
        spared.members[1].recover({})
    spared.members[0].close()
    with pytest.raises(ProtocolError, match="or the round is closed"):
        spared.members[0].open(spared.announcements, b"")


def test_no_smaller_set_of_masks_is_ever_given(committee: Make, vectors: Vectors) -> None:
    """One honest member (0), everyone else's seeds known: what is left is that member's mask."""
    played = committee(5, 3, dimension=64)
    given_vectors = vectors(played)
    played.announce()
    seeds: dict[tuple[int, int], bytes] = {}
    for index in range(5):
        source = DeterministicKeySource(b"seed" + f"client {index}".encode())
        for member in range(3):
            seeds[index, member] = source.key("member seed")
    played.submit(given_vectors)
    played.open()
    played.answer()
    context, transcript_hash = played.parameters.context(), played.server._transcript_hash
    hidden = {}
    for index, message in played.submissions.items():
        words = Submission.parse(message, index, played.parameters).vector(played.parameters)
        known = words.copy()
        for member in (1, 2):
            key = client_module.transcript.mask_key(context, transcript_hash, index, member, seeds[index, member])
            add_masks(known, [key], [-1])
        hidden[index] = known - given_vectors[index]  # the mask of member 0
    answer = np.frombuffer(played.answers[0][48:-64], np.uint32)
    for count in range(1, 6):
        for chosen in itertools.combinations(range(5), count):
            matches = np.array_equal(total(hidden, chosen), answer)
            assert matches == (count == 5)


def test_the_spare_needs_every_share_it_says(committee: Make, vectors: Vectors) -> None:
    """``quorum - 1`` of the others, the most that may be corrupt, rebuild nothing of a seed."""
    played = committee(3, 5, dropout_tolerance=1)
    played.announce()
    played.submit(vectors(played))
    played.open()
    parameters = played.parameters
    assert (parameters.quorum, parameters.max_corrupt_members) == (4, 2)
    start, owner = 32, 0
    shares = {m: int.from_bytes(played.members[m]._contents[1][start : start + 33], "little") for m in range(1, 5)}
    seed = bytes(played.members[owner]._contents[1][:32])
    shamir = client_module.shamir
    whole = shamir.combine(shamir.weights([m + 1 for m in shares]), shares.values())
    assert whole.to_bytes(32, "little") == seed
    part = [1, 2, 3]
    fewer = shamir.combine(shamir.weights([m + 1 for m in part]), (shares[m] for m in part))
    assert (fewer % (1 << 256)).to_bytes(32, "little") != seed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dropout_tolerance": 2}, r"dropout_tolerance for 3 members must lie in 0 \.\. 1"),
        ({"dropout_tolerance": -1}, "dropout_tolerance"),
        ({"members": (b"k" * 32,)}, "2 to 5 members"),
        ({"members": (b"k" * 32,) * 2}, "two members of the committee have the same key"),
        ({"members": (b"k" * 31, b"l" * 32)}, "32 bytes"),
        ({"min_survivors": 2}, "min_survivors"),
        ({"bits": 20}, "16 or 32"),
        ({"roster": (b"a" * 32, b"b" * 32)}, "3 to 65535"),
    ],
)
def test_bad_parameters(committee: Make, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        committee(4, 3, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"task": b"x"},
        {"round": 8},
        {"dimension": 17},
        {"bits": 16},
        {"min_survivors": 4},
        {"model_hash": b"x" * 32},
        {"base_hash": b"x" * 32},
        {"plan_hash": b"x" * 32},
        {"dropout_tolerance": 1},
        {"members": (b"x" * 32, b"y" * 32)},
        {"roster": (b"x" * 32, b"y" * 32, b"z" * 32)},
    ],
)
def test_context_depends_on_every_field(committee: Make, change: dict[str, Any]) -> None:
    parameters = committee(4, 3).parameters
    changed = type(parameters)(**{**vars(parameters), **change})
    assert changed.context() != parameters.context()


def test_wrong_identities_and_vectors(committee: Make) -> None:
    played = committee(4, 3)
    parameters, keys = played.parameters, DeterministicKeySource(b"k")
    mine = played.clients[0]._identity
    for index in (1, 4, -1):
        with pytest.raises(ProtocolError, match=r"^roster"):
            CommitteeClient(parameters, index, mine, keys)
        with pytest.raises(ProtocolError, match=r"^roster"):
            CommitteeMember(parameters, index, mine, keys)
    played.announce()
    for vector in (np.zeros(16, np.uint16), np.zeros(15, np.uint32), [0] * 16):
        with pytest.raises(ProtocolError, match=r"^vector shape"):
            played.clients[0].mask(vector, played.announcements)  # type: ignore[arg-type]
