"""The messages of pairwise masking as bytes; `docs/protocol.md` has the layouts."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from carefl_secure.secagg.primitives.crypto import Buffer, refuse
from carefl_secure.secagg.primitives.framing import (
    HASH,
    NUMBER,
    SIGNATURE,
    SIGNATURE_BYTES,
    WORDS,
    Body,
    Field,
    Message,
    Shape,
    octets,
)
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

_U16 = struct.Struct("<H")
_ENTRY = struct.Struct(f"<HB{SHARE_BYTES}s")
_TAG = 16

SEALED_BYTES = 2 * SHARE_BYTES + _TAG


class Kind(IntEnum):
    """The five types of message."""

    ADVERTISEMENT = 1
    SHARE = 2
    UPLOAD = 3
    CONSENT = 4
    ANSWER = 5


class Secret(IntEnum):
    """Which secret of a client an answer holds a share of."""

    SELF_MASK = 0
    PAIR_KEY = 1


@dataclass(frozen=True)
class Advertisement(Message, kind=Kind.ADVERTISEMENT, fields=(HASH, HASH, HASH, SIGNATURE), early=True):
    """Step 0: two public keys and the commitment to the self-mask secret; 176 bytes."""

    encryption_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes


@dataclass(frozen=True)
class Share(Message, kind=Kind.SHARE, fields=(NUMBER, octets(SEALED_BYTES)), early=True):
    """Step 1: a client's shares of both its secrets, sealed to one other client; 100 bytes."""

    recipient: int
    sealed: bytes

    def to(self, recipient: int) -> Self:
        """Return the message if it is for ``recipient``; refuse it otherwise."""
        if self.recipient != recipient:
            raise refuse("share recipient", f"it is for client {self.recipient}, not for {recipient}")
        return self


@dataclass(frozen=True)
class Upload(Message, kind=Kind.UPLOAD, fields=(WORDS, SIGNATURE)):
    """Step 2: the masked vector, signed; 80 bytes and the words."""

    words: memoryview
    signature: bytes = b""


@dataclass(frozen=True)
class Consent(Message, kind=Kind.CONSENT, fields=(SIGNATURE,)):
    """Step 3: a signature over the two survivor sets; 80 bytes. The sets do not travel in it."""

    signature: bytes


def _write_shares(shares: Mapping[int, tuple[Secret, int]]) -> Iterable[Buffer]:
    """Write a count and the entries by ascending client."""
    yield _U16.pack(len(shares))
    for owner, (kind, value) in sorted(shares.items()):
        yield _ENTRY.pack(owner, kind, value.to_bytes(SHARE_BYTES, "little"))


def _read_shares(body: Body, shape: Shape) -> dict[int, tuple[Secret, int]]:
    shares: dict[int, tuple[Secret, int]] = {}
    last, count = -1, body.number()
    body.expect(count * _ENTRY.size + SIGNATURE_BYTES)
    for owner, kind, raw in _ENTRY.iter_unpack(body.view(count * _ENTRY.size)):
        if not last < owner < shape.clients:
            raise refuse("answer entries", f"client {owner} repeats, is out of order or unknown")
        shares[owner] = (_secret(kind), read_element(raw))
        last = owner
    return shares


@dataclass(frozen=True)
class Answer(Message, kind=Kind.ANSWER, fields=(Field(_write_shares, _read_shares), SIGNATURE)):
    """Step 4: one share per client, of one of its two secrets, signed; 82 bytes and 36 each."""

    shares: Mapping[int, tuple[Secret, int]]
    signature: bytes


def _secret(kind: int) -> Secret:
    try:
        return Secret(kind)
    except ValueError as error:
        raise refuse("answer kind", f"there is no secret of kind {kind}") from error


def pack_pair(self_mask: int, pair_key: int) -> bytes:
    """Write what a sealed share message holds: shares of the self-mask secret and of the key."""
    return self_mask.to_bytes(SHARE_BYTES, "little") + pair_key.to_bytes(SHARE_BYTES, "little")


def unpack_pair(raw: bytes) -> tuple[int, int]:
    """Read what :func:`pack_pair` wrote; refuse another length or a value out of range."""
    if len(raw) != 2 * SHARE_BYTES:
        raise refuse("share length", f"{len(raw)} bytes, not {2 * SHARE_BYTES}")
    return read_element(raw[:SHARE_BYTES]), read_element(raw[SHARE_BYTES:])
