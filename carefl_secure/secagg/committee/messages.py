"""The committee's messages as bytes; the 16-byte header is that of ``wire.py``."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer
from carefl_secure.secagg.primitives.framing import exact, header, read_body
from carefl_secure.secagg.primitives.hpke import OVERHEAD, PUBLIC_BYTES
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

__all__ = [
    "CommitteeKind",
    "Entry",
    "Listing",
    "Loss",
    "MemberAnswer",
    "MemberKey",
    "Opening",
    "SeedShares",
    "Submission",
    "content_bytes",
    "envelope_bytes",
]

SEED_BYTES = 32
_U16 = struct.Struct("<H")
_HASH = 32
_SIGNATURE = 64


class CommitteeKind(IntEnum):
    """The types of message of a committee round."""

    MEMBER_KEY = 16
    SUBMISSION = 17
    LISTING = 18
    OPENING = 19
    MEMBER_ANSWER = 20
    LOSS = 21
    SEED_SHARES = 22


def content_bytes(parameters: CommitteeParameters) -> int:
    """Length of what an envelope holds: a seed and, with spares, the others' shares."""
    others = parameters.size - 1 if parameters.spare else 0
    return SEED_BYTES + others * SHARE_BYTES


def envelope_bytes(parameters: CommitteeParameters) -> int:
    """Length of one envelope."""
    return content_bytes(parameters) + OVERHEAD


def _from_client(
    message: Buffer, kind: CommitteeKind, index: int, parameters: CommitteeParameters
) -> memoryview:
    return read_body(message, kind, index, count=parameters.clients, context=parameters.context())


def _from_member(
    message: Buffer, kind: CommitteeKind, member: int, parameters: CommitteeParameters
) -> memoryview:
    early = kind == CommitteeKind.MEMBER_KEY
    return read_body(
        message,
        kind,
        member,
        count=parameters.size,
        context=parameters.key_context() if early else parameters.context(),
        party="member",
    )


def _pieces(view: memoryview, size: int) -> tuple[bytes, ...]:
    return tuple(bytes(view[at : at + size]) for at in range(0, len(view), size))


def _indices(raw: memoryview, limit: int, what: str) -> tuple[int, ...]:
    found = tuple(index for (index,) in _U16.iter_unpack(raw))
    if any(one >= other for one, other in itertools.pairwise(found)) or any(
        index >= limit for index in found
    ):
        raise refuse(what, "an index repeats, is out of order or unknown")
    return found


def _pack_indices(indices: Collection[int]) -> bytes:
    return b"".join(_U16.pack(index) for index in (len(indices), *sorted(indices)))


@dataclass(frozen=True)
class MemberKey:
    """A member's public key for the round; 1296 bytes."""

    public: bytes
    signature: bytes

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message."""
        return header(CommitteeKind.MEMBER_KEY, member, context) + self.public + self.signature

    @classmethod
    def parse(cls, message: Buffer, member: int, parameters: CommitteeParameters) -> MemberKey:
        """Read the message of a member; only the layout is checked."""
        body = _from_member(message, CommitteeKind.MEMBER_KEY, member, parameters)
        exact(body, PUBLIC_BYTES + _SIGNATURE, CommitteeKind.MEMBER_KEY)
        return cls(bytes(body[:PUBLIC_BYTES]), bytes(body[PUBLIC_BYTES:]))


@dataclass(frozen=True)
class Submission:
    """A client's one message: masked words, then commitments and envelopes per member."""

    words: memoryview
    commitments: tuple[bytes, ...]
    envelopes: tuple[bytes, ...]
    signature: bytes

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        top = header(CommitteeKind.SUBMISSION, index, context)
        return b"".join((top, self.words, *self.commitments, *self.envelopes, self.signature))

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: CommitteeParameters) -> Submission:
        """Read the message of a client without copying its words."""
        body = _from_client(message, CommitteeKind.SUBMISSION, index, parameters)
        words = parameters.dimension * parameters.bits // 8
        hashes = words + parameters.size * _HASH
        envelopes = hashes + parameters.size * envelope_bytes(parameters)
        exact(body, envelopes + _SIGNATURE, CommitteeKind.SUBMISSION)
        return cls(
            body[:words],
            _pieces(body[words:hashes], _HASH),
            _pieces(body[hashes:envelopes], envelope_bytes(parameters)),
            bytes(body[envelopes:]),
        )

    def vector(self, parameters: CommitteeParameters) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return np.frombuffer(self.words, parameters.dtype.newbyteorder("<"))

    def entry(self, words: bytes) -> Entry:
        """Return what a list says about this client; ``words`` is the digest of the words."""
        digests = tuple(hashlib.sha256(envelope).digest() for envelope in self.envelopes)
        return Entry(words, self.commitments, digests, self.signature)


@dataclass(frozen=True)
class Entry:
    """A client on a list: what it signed, by digest, and the signature."""

    words: bytes
    commitments: tuple[bytes, ...]
    envelopes: tuple[bytes, ...]
    signature: bytes

    def fields(self, context: bytes, seen: bytes, index: int) -> tuple[bytes, ...]:
        """Return the signed fields."""
        return transcript.submission(
            context, seen, index, self.words, self.commitments, self.envelopes
        )

    def encode(self) -> bytes:
        """Return the entry without its index."""
        return b"".join((self.words, *self.commitments, *self.envelopes, self.signature))


@dataclass(frozen=True)
class Listing:
    """The list of clients as one member gets it, with the envelopes meant for that member."""

    entries: Mapping[int, Entry]
    envelopes: Mapping[int, bytes]

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message to ``member``."""
        parts = [header(CommitteeKind.LISTING, member, context), _U16.pack(len(self.entries))]
        for index, entry in sorted(self.entries.items()):
            parts += [_U16.pack(index), entry.encode(), self.envelopes[index]]
        return b"".join(parts)

    @classmethod
    def parse(cls, message: Buffer, member: int, parameters: CommitteeParameters) -> Listing:
        """Read the message to ``member``; clients ascending, layout checked only."""
        body = _from_member(message, CommitteeKind.LISTING, member, parameters)
        if len(body) < _U16.size:
            raise refuse("message length", "listing ends before its count")
        (count,) = _U16.unpack_from(body)
        pair = _HASH * parameters.size
        whole = _U16.size + _HASH + 2 * pair + _SIGNATURE + envelope_bytes(parameters)
        exact(body, _U16.size + count * whole, CommitteeKind.LISTING)
        entries, envelopes, last = {}, {}, -1
        for at in range(_U16.size, len(body), whole):
            raw = body[at : at + whole]
            (index,) = _U16.unpack_from(raw)
            if not last < index < parameters.clients:
                raise refuse("client list", f"client {index} repeats, is out of order or unknown")
            last = index
            raw = raw[_U16.size :]
            words, raw = bytes(raw[:_HASH]), raw[_HASH:]
            commitments, raw = _pieces(raw[:pair], _HASH), raw[pair:]
            digests, raw = _pieces(raw[:pair], _HASH), raw[pair:]
            entries[index] = Entry(words, commitments, digests, bytes(raw[:_SIGNATURE]))
            envelopes[index] = bytes(raw[_SIGNATURE:])
        return cls(entries, envelopes)


@dataclass(frozen=True)
class Opening:
    """A member's word on a list: its digest and the clients whose envelopes do not open."""

    listed: bytes
    failed: tuple[int, ...]
    signature: bytes

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message."""
        top = header(CommitteeKind.OPENING, member, context)
        return top + self.listed + _pack_indices(self.failed) + self.signature

    @classmethod
    def parse(cls, message: Buffer, member: int, parameters: CommitteeParameters) -> Opening:
        """Read the message of a member; only the layout is checked."""
        kind = CommitteeKind.OPENING
        body = _from_member(message, kind, member, parameters)
        listed, failed, signature = _with_indices(body, parameters.clients, kind, "openable set")
        return cls(listed, failed, signature)


def _with_indices(
    body: memoryview, limit: int, kind: CommitteeKind, what: str
) -> tuple[bytes, tuple[int, ...], bytes]:
    if len(body) < _HASH + _U16.size:
        raise refuse("message length", f"{kind.name.lower()} ends before its count")
    (count,) = _U16.unpack_from(body, _HASH)
    end = _HASH + _U16.size * (1 + count)
    exact(body, end + _SIGNATURE, kind)
    indices = _indices(body[_HASH + _U16.size : end], limit, what)
    return bytes(body[:_HASH]), indices, bytes(body[end:])


@dataclass(frozen=True)
class MemberAnswer:
    """A member's sum of masks, and the digest of what it was asked to sum over."""

    settled: bytes
    words: memoryview
    signature: bytes

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message."""
        top = header(CommitteeKind.MEMBER_ANSWER, member, context)
        return b"".join((top, self.settled, self.words, self.signature))

    @classmethod
    def parse(cls, message: Buffer, member: int, parameters: CommitteeParameters) -> MemberAnswer:
        """Read the message of a member without copying its words."""
        body = _from_member(message, CommitteeKind.MEMBER_ANSWER, member, parameters)
        end = _HASH + parameters.dimension * parameters.bits // 8
        exact(body, end + _SIGNATURE, CommitteeKind.MEMBER_ANSWER)
        return cls(bytes(body[:_HASH]), body[_HASH:end], bytes(body[end:]))

    def vector(self, parameters: CommitteeParameters) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return np.frombuffer(self.words, parameters.dtype.newbyteorder("<"))


@dataclass(frozen=True)
class Loss:
    """A member's agreement on who is lost."""

    settled: bytes
    lost: tuple[int, ...]
    signature: bytes

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message."""
        top = header(CommitteeKind.LOSS, member, context)
        return top + self.settled + _pack_indices(self.lost) + self.signature

    @classmethod
    def parse(cls, message: Buffer, member: int, parameters: CommitteeParameters) -> Loss:
        """Read the message of a member; only the layout is checked."""
        body = _from_member(message, CommitteeKind.LOSS, member, parameters)
        settled, lost, signature = _with_indices(
            body, parameters.size, CommitteeKind.LOSS, "lost members"
        )
        return cls(settled, lost, signature)


@dataclass(frozen=True)
class SeedShares:
    """A member's shares of lost members' seeds: by lost member, then by client, ascending."""

    shares: Mapping[tuple[int, int], int]
    signature: bytes

    def content(self) -> bytes:
        """Return the signed part."""
        return b"".join(
            value.to_bytes(SHARE_BYTES, "little") for _, value in sorted(self.shares.items())
        )

    def encode(self, member: int, context: bytes) -> bytes:
        """Return the message."""
        top = header(CommitteeKind.SEED_SHARES, member, context)
        return top + self.content() + self.signature

    @classmethod
    def parse(
        cls,
        message: Buffer,
        member: int,
        lost: Collection[int],
        clients: Collection[int],
        parameters: CommitteeParameters,
    ) -> SeedShares:
        """Read the message of a member for known lost members and clients."""
        body = _from_member(message, CommitteeKind.SEED_SHARES, member, parameters)
        keys = [(gone, client) for gone in sorted(lost) for client in sorted(clients)]
        end = len(keys) * SHARE_BYTES
        exact(body, end + _SIGNATURE, CommitteeKind.SEED_SHARES)
        values = (read_element(raw) for raw in _pieces(body[:end], SHARE_BYTES))
        return cls(dict(zip(keys, values, strict=True)), bytes(body[end:]))
