"""The messages as bytes: fixed layout, versioned, bound to a round, strict about every length.

Every message starts with 16 bytes::

    offset  bytes  field
    0       4      magic "CFSA"
    4       1      version, 1
    5       1      type: 1 to 5 here, 16 to 22 in the committee, 32 to 34 in the encrypted mode
    6       2      sender, little-endian index in the roster (or among the committee's members)
    8       8      first 8 bytes of the context hash

and goes on with the fields of its type, without padding. The prefix of the context hash only
makes a stray message easy to name; what binds a message to its round is the whole hash inside
its signature or seal. Parsers raise ``ProtocolError`` and nothing else, whatever the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer
from carefl_secure.secagg.primitives.framing import exact, header, read_body
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

__all__ = [
    "Advertisement",
    "Answer",
    "Consent",
    "Kind",
    "Secret",
    "Share",
    "Upload",
    "pack_pair",
    "unpack_pair",
]

_U16 = struct.Struct("<H")
_ENTRY = struct.Struct(f"<HB{SHARE_BYTES}s")
_SIGNATURE = 64
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
    """Which secret of a peer an answer holds a share of."""

    SELF_MASK = 0
    PAIR_KEY = 1


def _body(message: Buffer, kind: Kind, index: int, parameters: RoundParameters) -> memoryview:
    early = kind in (Kind.ADVERTISEMENT, Kind.SHARE)
    context = parameters.key_context() if early else parameters.context()
    return read_body(message, kind, index, count=parameters.clients, context=context)


@dataclass(frozen=True)
class Advertisement:
    """Step 0: two public keys and the commitment to the self-mask secret; 176 bytes."""

    encryption_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        fields = (self.encryption_key, self.mask_key, self.commitment, self.signature)
        return header(Kind.ADVERTISEMENT, index, context) + b"".join(fields)

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: RoundParameters) -> Advertisement:
        """Read the message of client ``index``; only the layout is checked."""
        body = _body(message, Kind.ADVERTISEMENT, index, parameters)
        exact(body, 96 + _SIGNATURE, Kind.ADVERTISEMENT)
        raw = bytes(body)
        return cls(raw[:32], raw[32:64], raw[64:96], raw[96:])


@dataclass(frozen=True)
class Share:
    """Step 1: one peer's shares of both secrets, sealed to that peer; 100 bytes."""

    recipient: int
    sealed: bytes

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return header(Kind.SHARE, index, context) + _U16.pack(self.recipient) + self.sealed

    @classmethod
    def parse(
        cls, message: Buffer, index: int, recipient: int, parameters: RoundParameters
    ) -> Share:
        """Read the message from ``index`` to ``recipient``; only the layout is checked."""
        body = _body(message, Kind.SHARE, index, parameters)
        exact(body, _U16.size + SEALED_BYTES, Kind.SHARE)
        (named,) = _U16.unpack_from(body)
        if named != recipient:
            raise refuse("share recipient", f"it is for client {named}, not for {recipient}")
        return cls(named, bytes(body[_U16.size :]))


@dataclass(frozen=True)
class Upload:
    """Step 2: the masked vector, signed; 80 bytes and the words."""

    words: memoryview
    signature: bytes

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return b"".join((header(Kind.UPLOAD, index, context), self.words, self.signature))

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: RoundParameters) -> Upload:
        """Read the message of client ``index`` without copying its words."""
        body = _body(message, Kind.UPLOAD, index, parameters)
        size = parameters.dimension * parameters.bits // 8
        exact(body, size + _SIGNATURE, Kind.UPLOAD)
        return cls(body[:size], bytes(body[size:]))

    def vector(self, parameters: RoundParameters) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return np.frombuffer(self.words, parameters.dtype.newbyteorder("<"))


@dataclass(frozen=True)
class Consent:
    """Step 3: a signature over the two survivor sets; 80 bytes. The sets do not travel in it."""

    signature: bytes

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return header(Kind.CONSENT, index, context) + self.signature

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: RoundParameters) -> Consent:
        """Read the message of client ``index``; only the layout is checked."""
        body = _body(message, Kind.CONSENT, index, parameters)
        exact(body, _SIGNATURE, Kind.CONSENT)
        return cls(bytes(body))


@dataclass(frozen=True)
class Answer:
    """Step 4: one share per peer, of one of its two secrets, signed; 82 bytes and 36 per peer."""

    shares: Mapping[int, tuple[Secret, int]]
    signature: bytes

    def fields(self) -> bytes:
        """Return the signed part: a count and the entries by ascending peer."""
        entries = (
            _ENTRY.pack(peer, kind, value.to_bytes(SHARE_BYTES, "little"))
            for peer, (kind, value) in sorted(self.shares.items())
        )
        return _U16.pack(len(self.shares)) + b"".join(entries)

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return header(Kind.ANSWER, index, context) + self.fields() + self.signature

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: RoundParameters) -> Answer:
        """Read the message of client ``index``; one entry per peer, peers ascending."""
        body = _body(message, Kind.ANSWER, index, parameters)
        if len(body) < _U16.size:
            raise refuse("message length", "answer ends before its count")
        (count,) = _U16.unpack_from(body)
        size = _U16.size + count * _ENTRY.size
        exact(body, size + _SIGNATURE, Kind.ANSWER)
        shares: dict[int, tuple[Secret, int]] = {}
        last = -1
        for peer, kind, raw in _ENTRY.iter_unpack(body[_U16.size : size]):
            if not last < peer < parameters.clients:
                raise refuse("answer peers", f"peer {peer} repeats, is out of order or unknown")
            shares[peer] = (_secret(kind), read_element(raw))
            last = peer
        return cls(shares, bytes(body[size:]))


def _secret(kind: int) -> Secret:
    try:
        return Secret(kind)
    except ValueError as error:
        raise refuse("answer kind", f"there is no secret of kind {kind}") from error


def pack_pair(self_mask: int, pair_key: int) -> bytes:
    """Write what a sealed share message holds: shares of the self-mask secret and of the key."""
    return self_mask.to_bytes(SHARE_BYTES, "little") + pair_key.to_bytes(SHARE_BYTES, "little")


def unpack_pair(raw: bytes) -> tuple[int, int]:
    """Read what :func:`pack_pair` wrote.

    Raises
    ------
    ProtocolError
        If the length or a value is out of range.
    """
    if len(raw) != 2 * SHARE_BYTES:
        raise refuse("share length", f"{len(raw)} bytes, not {2 * SHARE_BYTES}")
    return read_element(raw[:SHARE_BYTES]), read_element(raw[SHARE_BYTES:])
