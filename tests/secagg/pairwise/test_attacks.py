"""Attacks by the server and by clients; each is refused, by the name of the check."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import PairwiseClient, RoundParameters, SenderError
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.messages import Advertisement, Answer, Kind, Secret
from carefl_secure.secagg.primitives import crypto
from carefl_secure.secagg.primitives.shamir import PRIME
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]
Make = Callable[..., RoundParameters]
Identities = list[Ed25519PrivateKey]


def masked(rehearsal: Rehearsal, vectors: Vectors, gone: tuple[int, ...] = ()) -> None:
    """Play up to and with the uploads."""
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal), gone=gone)


# --- the server lies about keys and models ---


@pytest.mark.parametrize("place", [16, 48, 80])
def test_swapped_key(rehearse: Rehearse, place: int) -> None:
    """A man in the middle puts its own key (or commitment) into a peer's advertisement."""
    rehearsal = rehearse(9)
    rehearsal.advertise()
    mine = crypto.public_bytes(X25519PrivateKey.generate())
    false = rehearsal.adverts[3][:place] + mine + rehearsal.adverts[3][place + 32 :]
    with pytest.raises(ProtocolError, match=r"^advertisement signature: client 3"):
        rehearsal.clients[0].share({**rehearsal.adverts, 3: false})


@pytest.mark.parametrize("field", ["base_hash", "plan_hash"])
def test_model_inconsistency(rehearse: Rehearse, parameters: Make, identities: Identities, field: str) -> None:
    """One client is sent another base or plan; for other models see test_late_model."""
    rehearsal = rehearse(9)
    rehearsal.advertise()
    stated = parameters(9, **{field: b"!" * 32})
    victim = PairwiseClient(stated, 4, identities[4], DeterministicKeySource(b"v"))
    message = victim.advertise()
    with pytest.raises(ProtocolError, match=r"^message context"):
        rehearsal.clients[0].share({**rehearsal.adverts, 4: message})
    dressed = message[:8] + rehearsal.adverts[4][8:16] + message[16:]
    with pytest.raises(ProtocolError, match=r"^advertisement signature: client 4"):
        rehearsal.clients[0].share({**rehearsal.adverts, 4: dressed})
    with pytest.raises(ProtocolError, match=r"^message context"):
        victim.share({**rehearsal.adverts, 4: message})


def test_own_advertisement_replaced_or_left_out(rehearse: Rehearse) -> None:
    rehearsal = rehearse(9)
    rehearsal.advertise()
    without = {i: m for i, m in rehearsal.adverts.items() if i}
    for false in (without, {**rehearsal.adverts, 0: rehearsal.adverts[1]}):
        with pytest.raises(ProtocolError, match=r"^own advertisement"):
            rehearsal.clients[0].share(false)


def test_clients_outside_the_roster(rehearse: Rehearse) -> None:
    rehearsal = rehearse(9)
    rehearsal.advertise()
    for index in (9, -1, 65_536):
        with pytest.raises(ProtocolError, match=r"^message sender"):
            rehearsal.clients[0].share({**rehearsal.adverts, index: rehearsal.adverts[1]})


def test_two_lists_of_advertisements(rehearse: Rehearse, vectors: Vectors) -> None:
    """Different clients are shown different cohorts: no seal of the others opens."""
    rehearsal = rehearse(9)
    rehearsal.advertise()
    fewer = {i: m for i, m in rehearsal.adverts.items() if i != 8}
    boxes = {i: rehearsal.clients[i].share(rehearsal.adverts if i < 4 else fewer) for i in range(8)}
    inbox = {i: box[0] for i, box in boxes.items() if i}
    with pytest.raises(ProtocolError, match=r"^share seal"):
        rehearsal.clients[0].mask(vectors(rehearsal)[0], inbox)


# --- the server lies about survivors ---


def test_two_survivor_sets(rehearse: Rehearse, vectors: Vectors) -> None:
    """Two groups sign different sets, to get both secrets of client 5: neither is unmasked."""
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    everyone = tuple(range(9))
    part = tuple(i for i in everyone if i != 5)
    signed = {i: rehearsal.clients[i].sign(everyone, everyone if i < 4 or i == 5 else part) for i in everyone}
    for index in (0, 5):
        with pytest.raises(ProtocolError, match=r"^survivor set signature"):
            rehearsal.clients[index].unmask(signed)
        mine = {i: m for i, m in signed.items() if i < 4 or i == 5}
        with pytest.raises(ProtocolError, match=r"^consent count: 5 signatures, 7"):
            rehearsal.clients[index].unmask(mine)
    with pytest.raises(ProtocolError, match=r"^consent signers"):
        rehearsal.clients[8].unmask(signed)


def test_second_survivor_set_for_one_client(rehearse: Rehearse, vectors: Vectors) -> None:
    """Both secrets of client 5 asked of one client, before and after it has answered."""
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    rehearsal.sign()
    part = [i for i in range(9) if i != 5]
    with pytest.raises(ProtocolError, match=r"^step order: sign was answered before"):
        rehearsal.clients[0].sign(range(9), part)
    rehearsal.unmask()
    with pytest.raises(ProtocolError, match=r"^step order: sign was answered before"):
        rehearsal.clients[0].sign(range(9), part)
    with pytest.raises(ProtocolError, match=r"^step order: unmask was answered before"):
        rehearsal.clients[0].unmask(rehearsal.consents)


def test_never_both_secrets_of_one_client(rehearse: Rehearse, vectors: Vectors) -> None:
    """Over all answers of a round, each client's shares are all of one secret."""
    rehearsal = rehearse(9)
    masked(rehearsal, vectors, gone=(2, 5))
    rehearsal.sign()
    rehearsal.unmask()
    kinds: dict[int, set[Secret]] = {i: set() for i in range(9)}
    for index, message in rehearsal.answers.items():
        answer = Answer.parse(message, index, rehearsal.parameters)
        assert len(message) == 82 + 36 * 9
        for peer, (kind, _) in answer.shares.items():
            kinds[peer].add(kind)
    for peer, found in kinds.items():
        assert found == {Secret.PAIR_KEY if peer in (2, 5) else Secret.SELF_MASK}


def test_survivor_set_below_min_survivors(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    with pytest.raises(CohortError, match=r"^min_survivors: 3 clients after uploading"):
        rehearsal.clients[0].sign(range(9), [0, 1, 2])


@pytest.mark.parametrize(
    ("shared", "survivors", "check"),
    [
        (range(9), range(1, 9), "survivor set"),
        (range(8), range(8), "share set"),
        (range(8), range(9), "share set"),
        (range(9), [*range(9), 9], "survivor set"),
        (range(9), [*range(9), 0], "survivor set"),
        ([*range(9), 1], range(9), "survivor set"),
        (range(10), range(9), "share set"),
    ],
)
def test_impossible_survivor_sets(
    rehearse: Rehearse, vectors: Vectors, shared: Any, survivors: Any, check: str
) -> None:
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    with pytest.raises(ProtocolError, match=f"^{check}"):
        rehearsal.clients[0].sign(shared, survivors)


def test_two_share_sets(rehearse: Rehearse, vectors: Vectors) -> None:
    """The server hides one client's shares from half of the others."""
    rehearsal = rehearse(9)
    rehearsal.advertise()
    rehearsal.share()
    given = vectors(rehearsal)
    for index in range(9):
        inbox = rehearsal.server.inbox(index)
        if index < 4:
            del inbox[8]
        rehearsal.clients[index].mask(given[index], inbox)
    with pytest.raises(ProtocolError, match=r"^share set"):
        rehearsal.clients[0].sign(range(9), range(9))
    with pytest.raises(ProtocolError, match=r"^share set"):
        rehearsal.clients[5].sign(range(8), range(8))


def test_one_signature_counted_many_times(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    rehearsal.sign()
    copies = dict.fromkeys(range(9), rehearsal.consents[1])
    with pytest.raises(ProtocolError, match=r"^message sender"):
        rehearsal.clients[0].unmask(copies)
    renamed = {i: m[:6] + i.to_bytes(2, "little") + m[8:] for i, m in copies.items()}
    with pytest.raises(ProtocolError, match=r"^survivor set signature"):
        rehearsal.clients[0].unmask(renamed)


# --- messages are moved about ---


def test_swapped_share_messages(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(9)
    rehearsal.advertise()
    rehearsal.share()
    inbox = rehearsal.server.inbox(0)
    given = vectors(rehearsal)[0]
    swapped = {**inbox, 1: inbox[2], 2: inbox[1]}
    with pytest.raises(ProtocolError, match=r"^message sender"):
        rehearsal.clients[0].mask(given, swapped)
    dressed = {**inbox, 1: inbox[1][:18] + inbox[2][18:]}
    with pytest.raises(ProtocolError, match=r"^share seal"):
        rehearsal.clients[0].mask(given, dressed)
    other = rehearsal.server.inbox(3)[1]
    with pytest.raises(ProtocolError, match=r"^share recipient"):
        rehearsal.clients[0].mask(given, {**inbox, 1: other})
    dressed = {**inbox, 1: inbox[1][:18] + other[18:]}
    with pytest.raises(ProtocolError, match=r"^share seal"):
        rehearsal.clients[0].mask(given, dressed)


def test_own_share_reflected(rehearse: Rehearse, vectors: Vectors) -> None:
    """What a client sealed for a peer comes back as if the peer had sealed it."""
    rehearsal = rehearse(9)
    rehearsal.advertise()
    rehearsal.share()
    inbox = rehearsal.server.inbox(0)
    mine = rehearsal.shares[0][1]
    with pytest.raises(ProtocolError, match=r"^share seal"):
        rehearsal.clients[0].mask(vectors(rehearsal)[0], {**inbox, 1: inbox[1][:18] + mine[18:]})
    with pytest.raises(ProtocolError, match=r"^share senders"):
        rehearsal.clients[0].mask(vectors(rehearsal)[0], {**inbox, 0: mine})


@pytest.mark.parametrize("dressed", [False, True])
def test_messages_of_another_round(rehearse: Rehearse, vectors: Vectors, dressed: bool) -> None:
    """The same clients, even with the same keys: nothing of round 6 passes in round 7."""
    old, new = rehearse(4, round=6), rehearse(4)
    given = vectors(new)
    old.run(given)

    def stale(message: bytes) -> bytes:
        early = message[5] in (Kind.ADVERTISEMENT, Kind.SHARE)
        context = new.parameters.key_context() if early else new.parameters.context()
        return message[:8] + context[:8] + message[16:] if dressed else message

    def refused(check: str, call: Callable[[], object]) -> None:
        with pytest.raises(ProtocolError, match=f"^{check if dressed else 'message context'}"):
            call()

    refused("advertisement signature", lambda: new.server.advertised(1, stale(old.adverts[1])))
    new.advertise()
    adverts = {**new.adverts, 1: stale(old.adverts[1])}
    refused("advertisement signature", lambda: new.clients[0].share(adverts))
    new.share()
    inbox = {**new.server.inbox(0), 1: stale(old.shares[1][0])}
    refused("share seal", lambda: new.clients[0].mask(given[0], inbox))
    refused("upload signature", lambda: new.server.uploaded(1, stale(old.uploads[1])))
    new.mask(given)
    new.server.survivors()
    refused("survivor set signature", lambda: new.server.signed(1, stale(old.consents[1])))
    new.sign()
    consents = {**new.consents, 1: stale(old.consents[1])}
    refused("survivor set signature", lambda: new.clients[0].unmask(consents))
    new.server.signatures()
    refused("answer signature", lambda: new.server.answered(1, stale(old.answers[1])))
    new.unmask()
    assert np.array_equal(new.finish(), given[0] + given[1] + given[2] + given[3])


def test_replay_as_another_client(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4)
    rehearsal.advertise(gone=[3])

    def dressed(message: bytes) -> bytes:
        return message[:6] + b"\x03\x00" + message[8:]

    with pytest.raises(ProtocolError, match=r"^message sender"):
        rehearsal.server.advertised(3, rehearsal.adverts[1])
    with pytest.raises(ProtocolError, match=r"^advertisement signature"):
        rehearsal.server.advertised(3, dressed(rehearsal.adverts[1]))
    rehearsal = rehearse(4)
    masked(rehearsal, vectors, gone=(3,))
    with pytest.raises(ProtocolError, match=r"^message sender"):
        rehearsal.server.uploaded(3, rehearsal.uploads[1])
    with pytest.raises(ProtocolError, match=r"^upload signature"):
        rehearsal.server.uploaded(3, dressed(rehearsal.uploads[1]))


# --- messages are damaged ---


def damaged(message: bytes) -> list[bytes]:
    """The message with single bits flipped all over, cut short, and drawn out."""
    flips = []
    for place in {*range(0, len(message), 7), *range(20), len(message) - 1, len(message) - 64}:
        changed = bytearray(message)
        changed[place] ^= 1 << (place % 8)
        flips.append(bytes(changed))
    cuts = [message[:size] for size in {0, 1, 15, 16, 17, len(message) // 2, len(message) - 1}]
    return [*flips, *cuts, message + b"\x00", message + message]


def test_damaged_messages_are_refused(rehearse: Rehearse, vectors: Vectors) -> None:
    """Every flip, cut and extension, of every message, at everyone who reads it."""
    rehearsal = rehearse(4)
    server, clients, given = rehearsal.server, rehearsal.clients, vectors(rehearsal)
    checks = set()

    def refused(call: Callable[[bytes], object], message: bytes) -> None:
        for false in damaged(message):
            with pytest.raises(ProtocolError, match=r"^[a-z ]+: ") as caught:
                call(false)
            checks.add(str(caught.value).split(":")[0])

    advert = clients[1].advertise()
    refused(lambda m: server.advertised(1, m), advert)
    clients[1] = rehearse(4).clients[1]
    rehearsal.advertise()
    refused(lambda m: clients[0].share({**rehearsal.adverts, 1: m}), rehearsal.adverts[1])
    rehearsal.share()
    inbox = server.inbox(0)
    refused(lambda m: clients[0].mask(given[0], {**inbox, 1: m}), inbox[1])
    upload = clients[1].mask(given[1], server.inbox(1))
    refused(lambda m: server.uploaded(1, m), upload)
    server.uploaded(1, upload)
    for index in (0, 2, 3):
        server.uploaded(index, clients[index].mask(given[index], server.inbox(index)))
    consents = {i: clients[i].sign(*server.survivors()) for i in range(4)}
    refused(lambda m: server.signed(1, m), consents[1])
    refused(lambda m: clients[0].unmask({**consents, 1: m}), consents[1])
    for index, message in consents.items():
        server.signed(index, message)
    server.signatures()
    answers = {i: clients[i].unmask(consents) for i in range(4)}
    refused(lambda m: server.answered(1, m), answers[1])
    for index, message in answers.items():
        server.answered(index, message)
    assert np.array_equal(server.finish(), given[0] + given[1] + given[2] + given[3])
    assert {"message length", "message magic", "share seal", "upload signature"} <= checks
    assert {"survivor set signature", "answer signature", "advertisement signature"} <= checks


# --- clients lie ---


def false_answer(rehearsal: Rehearsal, identity: Ed25519PrivateKey, index: int, change: Any) -> bytes:
    """A well-signed answer whose shares went through ``change``."""
    honest = Answer.parse(rehearsal.answers[index], index, rehearsal.parameters)
    shares = dict(honest.shares)
    change(shares)
    fields = crypto.statement(
        rehearsal.parameters.context(), rehearsal.server._transcript_hash, index, Answer(shares, b"").content()
    )
    signature = crypto.sign(identity, transcript.ANSWER, *fields)
    return Answer(shares, signature).encode(index, rehearsal.parameters.context())


def answering(rehearsal: Rehearsal, vectors: Vectors) -> None:
    """Play until all but the server have answered."""
    masked(rehearsal, vectors, gone=(5,))
    rehearsal.sign()
    rehearsal.server.signatures()
    for index in rehearsal.present:
        rehearsal.answers[index] = rehearsal.clients[index].unmask(rehearsal.consents)


def lie_about(rehearsal: Rehearsal, identities: Identities, liars: Collection[int], owner: int) -> None:
    """Hand in all answers, those of the liars with a false share of one client's secret."""

    for index, message in rehearsal.answers.items():

        def lie(shares: dict[int, tuple[Secret, int]], change: int = 3**index) -> None:
            kind, value = shares[owner]
            shares[owner] = (kind, (value + change) % PRIME)

        if index in liars:
            message = false_answer(rehearsal, identities[index], index, lie)
        rehearsal.server.answered(index, message)


@pytest.mark.parametrize("owner", [0, 3, 5])
@pytest.mark.parametrize("liar", [0, 4, 8])
def test_a_false_share_is_corrected_and_its_giver_named(
    rehearse: Rehearse, vectors: Vectors, identities: Identities, owner: int, liar: int
) -> None:
    """One false share with one spare one: 9 clients, one gone, a threshold of 7."""
    rehearsal = rehearse(9)
    given = vectors(rehearsal)
    answering(rehearsal, vectors)
    lie_about(rehearsal, identities, [liar], owner)
    expected = sum(given[i] for i in range(9) if i != 5)
    assert np.array_equal(rehearsal.finish(), expected)
    # with the first seven shares right the eighth is not needed, nor looked at
    assert rehearsal.server.false_shares == (set() if liar == 8 else {(liar, owner)})


@pytest.mark.parametrize(("liars", "held"), [((0, 1, 2), True), ((0, 1, 2, 3), False)])
def test_as_many_false_shares_as_there_are_spare_ones(
    rehearse: Rehearse, vectors: Vectors, identities: Identities, liars: Any, held: bool
) -> None:
    """10 clients, a threshold of 7: three false shares are corrected, the fourth ends the round."""
    rehearsal = rehearse(10)
    masked(rehearsal, vectors, gone=())
    rehearsal.sign()
    rehearsal.server.signatures()
    for index in rehearsal.present:
        rehearsal.answers[index] = rehearsal.clients[index].unmask(rehearsal.consents)
    lie_about(rehearsal, identities, liars, 4)
    if held:
        assert np.array_equal(rehearsal.finish(), sum(vectors(rehearsal).values()))
        assert rehearsal.server.false_shares == {(liar, 4) for liar in liars}
        return
    with pytest.raises(ProtocolError, match=r"^rebuilt secret: the self mask of client 4 is not"):
        rehearsal.finish()
    assert rehearsal.server._sum is None
    with pytest.raises(ProtocolError, match=r"^step order"):
        rehearsal.finish()


@pytest.mark.parametrize("top", [True, False])
def test_a_copied_key_in_another_encoding(rehearse: Rehearse, identities: Identities, top: bool) -> None:
    """X25519 ignores the top bit of a key and reduces it: such a copy is no new key."""
    rehearsal = rehearse(4)
    rehearsal.advertise(gone=[3])
    context = rehearsal.parameters.key_context()
    theirs = Advertisement.parse(rehearsal.adverts[0], 0, rehearsal.parameters).mask_key
    number = int.from_bytes(theirs, "little")
    number += 1 << 255 if top else 0
    copied = number.to_bytes(32, "little") if top else ((1 << 255) - 19 + 9).to_bytes(32, "little")
    public = (bytes([7]) * 32, copied, bytes(32))
    fields = transcript.advertisement(context, 3, *public)
    signature = crypto.sign(identities[3], transcript.ADVERTISEMENT, *fields)
    message = Advertisement(*public, signature).encode(3, context)
    with pytest.raises(ProtocolError, match=r"^key encoding: client 3"):
        rehearsal.server.advertised(3, message)
    shown = {**rehearsal.adverts, 3: message}
    with pytest.raises(ProtocolError, match=r"^key encoding: client 3"):
        rehearsal.clients[0].share(shown)


def test_a_share_that_does_not_open_names_its_sender(rehearse: Rehearse, vectors: Vectors) -> None:
    """Not an honest client: the refusal carries the index of who sealed it."""
    rehearsal = rehearse(5)
    rehearsal.advertise()
    rehearsal.share()
    inbox = rehearsal.server.inbox(1)
    damaged = inbox[3][:-1] + bytes([inbox[3][-1] ^ 1])
    for false in (damaged, inbox[3][:-1], inbox[2]):
        with pytest.raises(SenderError) as caught:
            rehearsal.clients[1].receive({**inbox, 3: false})
        assert caught.value.sender == 3
    rehearsal.clients[1].receive(inbox)


def test_answers_of_the_wrong_kind_or_for_the_wrong_peers(
    rehearse: Rehearse, vectors: Vectors, identities: Identities
) -> None:
    rehearsal = rehearse(9)
    answering(rehearsal, vectors)
    changes: list[Callable[[dict[int, tuple[Secret, int]]], object]] = [
        lambda shares: shares.update({5: (Secret.SELF_MASK, 1)}),
        lambda shares: shares.update({3: (Secret.PAIR_KEY, 1)}),
        lambda shares: shares.pop(3),
        lambda shares: shares.clear(),
    ]
    for change in changes:
        message = false_answer(rehearsal, identities[0], 0, change)
        with pytest.raises(ProtocolError, match=r"^answer content"):
            rehearsal.server.answered(0, message)
    rehearsal.server.answered(0, rehearsal.answers[0])


def test_shares_beyond_the_secrets_range(rehearse: Rehearse, vectors: Vectors, identities: Identities) -> None:
    """Shares that rebuild a number of more than 256 bits do not crash the server."""
    rehearsal = rehearse(9)
    answering(rehearsal, vectors)
    for index in sorted(rehearsal.answers)[:7]:

        def lie(shares: dict[int, tuple[Secret, int]]) -> None:
            shares[3] = (shares[3][0], PRIME - 1)

        rehearsal.server.answered(index, false_answer(rehearsal, identities[index], index, lie))
    with pytest.raises(ProtocolError, match=r"^rebuilt secret: the self mask of client 3"):
        rehearsal.finish()


def test_the_threshold_protects_the_self_mask(rehearse: Rehearse, vectors: Vectors) -> None:
    """With one answer less than the threshold the server ends without a sum."""
    rehearsal = rehearse(9)
    masked(rehearsal, vectors)
    rehearsal.sign()
    rehearsal.unmask(gone=[0, 1, 2])
    assert len(rehearsal.answers) == rehearsal.parameters.threshold - 1
    with pytest.raises(CohortError, match="6 clients after answering, at least 7"):
        rehearsal.finish()
