"""The committee's messages as bytes; `docs/protocol.md` has the layouts."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Protocol, Self

import numpy.typing as npt

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer
from carefl_secure.secagg.primitives.framing import (
    HASH_BYTES,
    SIGNATURE_BYTES,
    Body,
    Message,
    Shape,
    pack_indices,
    words_of,
)
from carefl_secure.secagg.primitives.hpke import OVERHEAD, PUBLIC_BYTES
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

__all__ = [
    "CommitteeKind",
    "CommitteeShape",
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


class CommitteeKind(IntEnum):
    """The types of message of a committee round."""

    MEMBER_KEY = 16
    SUBMISSION = 17
    LISTING = 18
    OPENING = 19
    MEMBER_ANSWER = 20
    LOSS = 21
    SEED_SHARES = 22


class CommitteeShape(Shape, Protocol):
    """What the lengths of a committee's messages follow from."""

    @property
    def size(self) -> int:
        """Number of members."""
        ...

    @property
    def dropout_tolerance(self) -> int:
        """How many members may be lost."""
        ...


def content_bytes(shape: CommitteeShape) -> int:
    """Length of what an envelope holds: a seed and, if members may be lost, shares of others."""
    others = shape.size - 1 if shape.dropout_tolerance else 0
    return SEED_BYTES + others * SHARE_BYTES


def envelope_bytes(shape: CommitteeShape) -> int:
    """Length of one envelope."""
    return content_bytes(shape) + OVERHEAD


class _OfMember(Message):
    """A message of a committee member, or to one."""

    PARTY: ClassVar[str] = "member"

    @classmethod
    def senders(cls, shape: Any) -> int:
        """Return how many parties can send it."""
        return int(shape.size)


@dataclass(frozen=True)
class MemberKey(_OfMember):
    """A member's public key for the round; 1296 bytes."""

    public: bytes
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.MEMBER_KEY
    BEFORE_MODEL: ClassVar[bool] = True

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.public, self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the fields."""
        return cls(body.take(PUBLIC_BYTES), body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Submission(Message):
    """A client's one message: masked words, then commitments and envelopes per member."""

    words: memoryview
    commitments: tuple[bytes, ...]
    envelopes: tuple[bytes, ...]
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.SUBMISSION

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.words, *self.commitments, *self.envelopes, self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the fields without copying the words."""
        return cls(
            body.words(shape),
            body.pieces(shape.size, HASH_BYTES),
            body.pieces(shape.size, envelope_bytes(shape)),
            body.take(SIGNATURE_BYTES),
        )

    def vector(self, shape: Shape) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return words_of(self.words, shape)

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

    def fields(self, context: bytes, transcript_hash: bytes, index: int) -> tuple[bytes, ...]:
        """Return the signed fields."""
        return transcript.submission(
            context, transcript_hash, index, self.words, self.commitments, self.envelopes
        )

    def encode(self) -> bytes:
        """Return the entry without its index."""
        return b"".join((self.words, *self.commitments, *self.envelopes, self.signature))


@dataclass(frozen=True)
class Listing(_OfMember):
    """The list of clients as one member gets it, with the envelopes meant for that member."""

    entries: Mapping[int, Entry]
    envelopes: Mapping[int, bytes]

    KIND: ClassVar[IntEnum] = CommitteeKind.LISTING

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        yield _U16.pack(len(self.entries))
        for index, entry in sorted(self.entries.items()):
            yield from (_U16.pack(index), entry.encode(), self.envelopes[index])

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take one entry and one envelope per client, ascending."""
        entries, envelopes, last = {}, {}, -1
        for _ in range(body.number()):
            index = body.number()
            if not last < index < shape.clients:
                raise refuse("client list", f"client {index} repeats, is out of order or unknown")
            last = index
            entries[index] = Entry(
                body.take(HASH_BYTES),
                body.pieces(shape.size, HASH_BYTES),
                body.pieces(shape.size, HASH_BYTES),
                body.take(SIGNATURE_BYTES),
            )
            envelopes[index] = body.take(envelope_bytes(shape))
        return cls(entries, envelopes)


@dataclass(frozen=True)
class Opening(_OfMember):
    """A member's statement on a list: its digest and the clients whose envelopes do not open."""

    listed: bytes
    failed: tuple[int, ...]
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.OPENING

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.listed, pack_indices(self.failed), self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the fields."""
        listed = body.take(HASH_BYTES)
        failed = body.indices(shape.clients, "openable set")
        return cls(listed, failed, body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class MemberAnswer(_OfMember):
    """A member's sum of masks, and the digest of what it was asked to sum over."""

    settled: bytes
    words: memoryview
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.MEMBER_ANSWER

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.settled, self.words, self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the fields without copying the words."""
        return cls(body.take(HASH_BYTES), body.words(shape), body.take(SIGNATURE_BYTES))

    def vector(self, shape: Shape) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return words_of(self.words, shape)


@dataclass(frozen=True)
class Loss(_OfMember):
    """A member's agreement on who is lost."""

    settled: bytes
    lost: tuple[int, ...]
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.LOSS

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.settled, pack_indices(self.lost), self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the fields."""
        settled = body.take(HASH_BYTES)
        return cls(settled, body.indices(shape.size, "lost members"), body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class SeedShares(_OfMember):
    """A member's shares of lost members' seeds, in the order of :meth:`by_client`."""

    values: tuple[int, ...]
    signature: bytes

    KIND: ClassVar[IntEnum] = CommitteeKind.SEED_SHARES

    def content(self) -> bytes:
        """Return the signed part."""
        return b"".join(value.to_bytes(SHARE_BYTES, "little") for value in self.values)

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.content(), self.signature

    @classmethod
    def read(cls, body: Body, shape: CommitteeShape) -> Self:
        """Take the shares and the signature."""
        count = max(0, len(body) - SIGNATURE_BYTES) // SHARE_BYTES
        values = tuple(read_element(raw) for raw in body.pieces(count, SHARE_BYTES))
        return cls(values, body.take(SIGNATURE_BYTES))

    def by_client(
        self, lost: Collection[int], clients: Collection[int]
    ) -> dict[tuple[int, int], int]:
        """Return the shares by lost member and client, both ascending; refuse a wrong number."""
        keys = [(gone, client) for gone in sorted(lost) for client in sorted(clients)]
        if len(keys) != len(self.values):
            raise refuse(
                "message length", f"seed_shares has {len(self.values)} shares, not {len(keys)}"
            )
        return dict(zip(keys, self.values, strict=True))
