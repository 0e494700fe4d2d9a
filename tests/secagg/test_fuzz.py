"""Ten thousand hostile inputs for every parser: ours is the only error that ever comes out.

Inputs are cut, flipped, random (also behind a good header), spliced out of two messages of any
kind, drawn out, or have a length field overwritten. What a parser does accept, it must write back
byte for byte: no two messages mean the same thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import SystemKeySource
from carefl_secure.secagg import EncryptedParameters, PairwiseClient, sender
from carefl_secure.secagg.committee.messages import (
    CommitteeKind,
    Listing,
    Loss,
    MemberAnswer,
    MemberKey,
    Opening,
    SeedShares,
    Submission,
)
from carefl_secure.secagg.encrypted.messages import EncryptedKind, EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.messages import Advertisement, Answer, Consent, Kind, Share, Upload, unpack_pair
from carefl_secure.secagg.pairwise.state import ClientState
from carefl_secure.secagg.primitives.crypto import derive, raw_identity
from carefl_secure.secagg.primitives.framing import header

COUNT = 10_000
CLIENTS, DIMENSION = 4, 2

Parse = Callable[[bytes], Any]


def hostile(rng: random.Random, valid: bytes, others: list[bytes]) -> bytes:
    """One input made out of valid messages."""
    how = rng.randrange(7)
    if how == 0:  # truncated
        return valid[: rng.randrange(len(valid))]
    if how == 1:  # bits flipped
        changed = bytearray(valid)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(valid))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 2:  # random
        return rng.randbytes(rng.randrange(2 * len(valid)))
    if how == 3:  # random behind a good header, most often of the right length
        size = len(valid) - 16 if rng.random() < 0.7 else rng.randrange(400)
        return valid[:16] + rng.randbytes(size)
    if how == 4:  # spliced from two messages
        other = rng.choice(others)
        return valid[: rng.randrange(len(valid))] + other[rng.randrange(len(other)) :]
    if how == 5:  # drawn out, at any place
        place = rng.randrange(len(valid) + 1)
        return valid[:place] + rng.randbytes(rng.randint(1, 40)) + valid[place:]
    changed = bytearray(valid)  # a length or an index at its limits
    width = rng.choice([1, 2, 4])
    place = rng.randrange(len(valid) - width)
    changed[place : place + width] = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x01"]) * width
    return bytes(changed)


def attack(valid: bytes, others: list[bytes], parse: Parse, seed: str) -> tuple[int, int]:
    """Return how many hostile inputs were refused and how many were taken, byte for byte."""
    rng = random.Random(seed)
    refused = taken = 0
    for _ in range(COUNT):
        message = hostile(rng, valid, others)
        try:
            written = parse(message)
        except ProtocolError as error:
            assert ": " in str(error)
            refused += 1
        else:
            assert written == message
            taken += 1
    assert parse(valid) == valid
    return refused, taken


PEER: dict[Kind, Any] = {
    Kind.ADVERTISEMENT: Advertisement.parse,
    Kind.SHARE: lambda m, i, p: Share.parse(m, i, p).to(1),
    Kind.UPLOAD: Upload.parse,
    Kind.CONSENT: Consent.parse,
    Kind.ANSWER: Answer.parse,
}


@pytest.fixture
def peer_messages(rehearse: Any, vectors: Any) -> tuple[Any, dict[Kind, bytes]]:
    """What client 0 sends in a real round of which client 3 drops out."""
    played = rehearse(CLIENTS, dimension=DIMENSION)
    played.advertise()
    played.share()
    shares = played.server.inbox(1)
    played.mask(vectors(played), gone=[3])
    played.sign()
    played.unmask()
    return played.parameters, {
        Kind.ADVERTISEMENT: played.adverts[0],
        Kind.SHARE: shares[0],
        Kind.UPLOAD: played.uploads[0],
        Kind.CONSENT: played.server.signatures()[0],
        Kind.ANSWER: played.answers[0],
    }


@pytest.mark.parametrize("kind", list(Kind))
def test_peer_messages(peer_messages: Any, kind: Kind) -> None:
    parameters, messages = peer_messages

    def parse(message: bytes) -> bytes:
        parsed = PEER[kind](message, 0, parameters)
        early = parsed.BEFORE_MODEL
        context = parameters.key_context() if early else parameters.context()
        return bytes(parsed.encode(0, context))

    refused, taken = attack(messages[kind], list(messages.values()), parse, kind.name)
    assert refused > COUNT // 3
    assert taken > 0  # flips in signatures are not the parser's to see


@pytest.fixture
def committee_messages(committee: Any, vectors: Any) -> tuple[Any, dict[CommitteeKind, bytes]]:
    """What member 0, or client 0, sends in a real round that loses member 2."""
    played = committee(3, 3, dropout_tolerance=1, dimension=DIMENSION)
    played.announce()
    played.submit(vectors(played))
    listing = played.server.listing(0)
    played.open()
    played.answer(gone=[2])
    played.recover()
    return played.parameters, {
        CommitteeKind.MEMBER_KEY: played.announcements[0],
        CommitteeKind.SUBMISSION: played.submissions[0],
        CommitteeKind.LISTING: listing,
        CommitteeKind.OPENING: played.openings[0],
        CommitteeKind.MEMBER_ANSWER: played.answers[0],
        CommitteeKind.LOSS: played.consents[0],
        CommitteeKind.SEED_SHARES: played.shares[0],
    }


COMMITTEE: dict[CommitteeKind, Any] = {
    CommitteeKind.MEMBER_KEY: MemberKey.parse,
    CommitteeKind.SUBMISSION: Submission.parse,
    CommitteeKind.LISTING: Listing.parse,
    CommitteeKind.OPENING: Opening.parse,
    CommitteeKind.MEMBER_ANSWER: MemberAnswer.parse,
    CommitteeKind.LOSS: Loss.parse,
    CommitteeKind.SEED_SHARES: SeedShares.parse,
}


@pytest.mark.parametrize("kind", list(CommitteeKind))
def test_committee_messages(committee_messages: Any, kind: CommitteeKind) -> None:
    parameters, messages = committee_messages

    def parse(message: bytes) -> bytes:
        parsed = COMMITTEE[kind](message, 0, parameters)
        early = parsed.BEFORE_MODEL
        context = parameters.key_context() if early else parameters.context()
        return bytes(parsed.encode(0, context))

    refused, taken = attack(messages[kind], list(messages.values()), parse, kind.name)
    assert refused > COUNT // 3
    assert taken > 0


@pytest.mark.parametrize("kind", list(EncryptedKind))
def test_encrypted_messages(parameters: Any, kind: EncryptedKind) -> None:
    fields = {"key_holder": b"k" * 32, "public_key": b"p" * 32, "value_bound": 9}
    agreed = EncryptedParameters(**{**vars(parameters(3, dimension=3 * 4096 + 1)), **fields})
    assert agreed.chunks == 2
    rng, context = random.Random("encrypted"), agreed.context()
    chunks = (rng.randbytes(90), rng.randbytes(70))
    messages = {
        EncryptedKind.UPLOAD: EncryptedUpload(chunks, rng.randbytes(64)).encode(0, context),
        EncryptedKind.OPENED: OpenedSum(rng.randbytes(8 * agreed.slots), rng.randbytes(64)).encode(0, context),
    }
    parsers: dict[EncryptedKind, Parse] = {
        EncryptedKind.UPLOAD: lambda m: EncryptedUpload.parse(m, 0, agreed).encode(0, context),
        EncryptedKind.OPENED: lambda m: OpenedSum.parse(m, 0, agreed).encode(0, context),
    }
    refused, taken = attack(messages[kind], list(messages.values()), parsers[kind], kind.name)
    assert refused > COUNT // 3
    assert taken > 0


def test_headers(peer_messages: Any) -> None:
    _, messages = peer_messages
    rng = random.Random("headers")
    for _ in range(COUNT):
        message = hostile(rng, messages[Kind.CONSENT], list(messages.values()))
        try:
            index = sender(message)
        except ProtocolError as error:
            assert str(error).startswith("message ")
        else:
            assert header(Kind(1), index, bytes(8))[6:8] == message[6:8]


def test_what_a_sealed_share_holds() -> None:
    rng = random.Random("pairs")
    for _ in range(COUNT):
        size = 66 if rng.random() < 0.8 else rng.randrange(200)
        raw = bytearray(rng.randbytes(size))
        if rng.random() < 0.5:
            for place in (32, 65):
                if place < size:
                    raw[place] = rng.randrange(2)
        try:
            pair = unpack_pair(bytes(raw))
        except ProtocolError as error:
            assert str(error).startswith("share ")
        else:
            assert b"".join(value.to_bytes(33, "little") for value in pair) == raw


def test_saved_states(rehearse: Any, vectors: Any) -> None:
    """None but the very blob opens."""
    played = rehearse(CLIENTS, dimension=DIMENSION)
    played.advertise()
    blobs = [played.clients[0].save()]
    played.share()
    blobs.append(played.clients[0].save())
    played.mask(vectors(played))
    blobs.append(played.clients[1].save())
    identity, keys = played.clients[0]._identity, SystemKeySource()
    rng = random.Random("state")
    for _ in range(COUNT):
        blob = hostile(rng, rng.choice(blobs[:2]), blobs)
        if blob in blobs[:2]:
            continue
        with pytest.raises(ProtocolError, match=r"^saved state: "):
            PairwiseClient.restore(blob, identity, played.parameters, keys)
    assert PairwiseClient.restore(blobs[1], identity, played.parameters, keys).index == 0


def test_what_a_sealed_state_holds(rehearse: Any) -> None:
    """A blob that opens but was written by other software: refused, never half restored."""
    played = rehearse(CLIENTS, dimension=DIMENSION)
    played.advertise()
    played.share()
    identity, context = played.clients[0]._identity, played.parameters.context()
    salt = b"s" * 32
    blob = played.clients[0]._state.seal(identity, context, salt)
    magic = blob[: blob.index(salt)]
    key = AESGCM(derive(raw_identity(identity), b"state", context, salt))
    plain = key.decrypt(bytes(12), blob[len(magic) + 32 :], magic + salt)
    rng, refused = random.Random("plain"), 0
    for _ in range(COUNT):
        changed = hostile(rng, plain, [plain, b"[" * 3000, b"{}", b"null", b'{"index": []}'])
        sealed = magic + salt + key.encrypt(bytes(12), changed, magic + salt)
        try:
            ClientState.open(sealed, identity, context)
        except ProtocolError as error:
            assert str(error).startswith("saved state: ")
            refused += 1
    assert refused > COUNT // 2
