"""What the parties of a committee round agree on, and its messages as bytes (layouts: `docs/protocol.md`)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from carefl_secure.errors import CohortError, ConfigError
from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.primitives.agreement import Agreement, check_keys
from carefl_secure.secagg.primitives.crypto import OVERHEAD, PUBLIC_BYTES, Buffer, refuse
from carefl_secure.secagg.primitives.framing import (
    HASH,
    HASH_BYTES,
    SIGNATURE,
    SIGNATURE_BYTES,
    WORDS,
    Body,
    Field,
    Message,
    indices,
    octets,
)
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

MIN_MEMBERS = 2
MAX_MEMBERS = 5

SEED_BYTES = 32
_U16 = struct.Struct("<H")


@dataclass(frozen=True, kw_only=True)
class CommitteeParameters(Agreement):
    """The agreement behind one committee round.

    Parameters
    ----------
    members
        The Ed25519 public keys of the 2 to 5 committee members; a member's index is its place.
    dropout_tolerance
        Members that may be lost; ``2 * dropout_tolerance + 1`` must be honest. 0 needs one honest and all present.
    """

    members: tuple[bytes, ...]
    dropout_tolerance: int = 0

    LABEL: ClassVar[bytes] = b"committee"
    MAX_CLIENTS: ClassVar[int] = (1 << 16) - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.size
        if not MIN_MEMBERS <= size <= MAX_MEMBERS:
            raise ConfigError(f"a committee has {MIN_MEMBERS} to {MAX_MEMBERS} members, not {size}")
        check_keys(self.members, "members of the committee")
        if not 0 <= self.dropout_tolerance <= (size - 1) // 2:
            raise ConfigError(
                f"dropout_tolerance for {size} members must lie in 0 .. {(size - 1) // 2},"
                f" not {self.dropout_tolerance}"
            )

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def quorum(self) -> int:
        """Members that open a round, and shares that rebuild a seed: all but those tolerated."""
        return self.size - self.dropout_tolerance

    @property
    def max_corrupt_members(self) -> int:
        """How many members may side with the server: ``size - 2 * dropout_tolerance - 1``.

        Two sets of ``quorum`` members then share an honest one, which says only once who is lost, so at most
        ``dropout_tolerance`` honest members' seeds are ever opened, and one honest member is left.
        """
        return self.size - 2 * self.dropout_tolerance - 1

    @property
    def shares_per_envelope(self) -> int:
        """Shares of other members' seeds that an envelope holds; 0 if none may be lost."""
        return self.size - 1 if self.dropout_tolerance else 0

    def tolerates(self, lost: int) -> bool:
        """Tell whether the round can go on without so many members."""
        return lost <= self.dropout_tolerance

    def lost_members(self, lost: Collection[int], *, all_needed: bool = False) -> CohortError:
        """Return the error for a round that cannot go on without its lost members."""
        named = ", ".join(str(member) for member in sorted(lost))
        tolerance = 0 if all_needed else self.dropout_tolerance
        return CohortError(
            f"lost members: nothing valid came from committee members {named}, and the round tolerates the loss of "
            f"{tolerance}; no sum can be opened and nothing was released: bring them back, or start a new round with "
            "another committee or a larger dropout tolerance"
        )

    def keys_of(self, party: str) -> tuple[bytes, ...]:
        """Return the Ed25519 public keys of clients or members."""
        return self.members if party == "member" else super().keys_of(party)

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        common = (self.round, self.dimension, self.bits, self.min_survivors, self.clients)
        return (*common, self.size, self.dropout_tolerance)

    def parties(self) -> tuple[bytes, ...]:
        """Return the keys of clients and members."""
        return (*self.roster, *self.members)


class CommitteeKind(IntEnum):
    """The types of message of a committee round."""

    MEMBER_KEY = 16
    SUBMISSION = 17
    LISTING = 18
    OPENING = 19
    MEMBER_ANSWER = 20
    LOSS = 21
    SEED_SHARES = 22


def content_bytes(shape: CommitteeParameters) -> int:
    """Length of what an envelope holds: a seed and, if members may be lost, shares of others."""
    return SEED_BYTES + shape.shares_per_envelope * SHARE_BYTES


def envelope_bytes(shape: CommitteeParameters) -> int:
    """Length of one envelope."""
    return content_bytes(shape) + OVERHEAD


def _per_member(size: Any) -> Field:
    """Return a field of one part for every member; its length follows from the shape."""
    return Field(tuple, lambda body, shape: body.pieces(shape.size, size(shape)))


_DIGESTS = _per_member(lambda shape: HASH_BYTES)
_ENVELOPES = _per_member(envelope_bytes)


class _OfMember(Message):
    """A message of a committee member, or to one."""

    PARTY: ClassVar[str] = "member"

    @classmethod
    def senders(cls, shape: Any) -> int:
        """Return how many parties can send it."""
        return int(shape.size)


@dataclass(frozen=True)
class MemberKey(_OfMember, kind=CommitteeKind.MEMBER_KEY, fields=(octets(PUBLIC_BYTES), SIGNATURE), early=True):
    """A member's public key for the round; 1296 bytes."""

    public: bytes
    signature: bytes


@dataclass(frozen=True)
class Submission(Message, kind=CommitteeKind.SUBMISSION, fields=(WORDS, _DIGESTS, _ENVELOPES, SIGNATURE)):
    """A client's one message: masked words, then commitments and envelopes per member."""

    words: memoryview
    commitments: tuple[bytes, ...]
    envelopes: tuple[bytes, ...]
    signature: bytes

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
        return transcript.submission(context, transcript_hash, index, self.words, self.commitments, self.envelopes)

    def encode(self) -> bytes:
        """Return the entry without its index."""
        return b"".join((self.words, *self.commitments, *self.envelopes, self.signature))


Listed = Mapping[int, tuple[Entry, bytes]]


def _write_list(clients: Listed) -> Iterable[Buffer]:
    """Write one entry and one envelope per client, ascending."""
    yield _U16.pack(len(clients))
    for index, (entry, envelope) in sorted(clients.items()):
        yield from (_U16.pack(index), entry.encode(), envelope)


def _read_list(body: Body, shape: CommitteeParameters) -> Listed:
    clients, last = {}, -1
    for _ in range(body.number()):
        index = body.number()
        if not last < index < shape.clients:
            raise refuse("client list", f"client {index} repeats, is out of order or unknown")
        last = index
        entry = Entry(
            body.take(HASH_BYTES),
            body.pieces(shape.size, HASH_BYTES),
            body.pieces(shape.size, HASH_BYTES),
            body.take(SIGNATURE_BYTES),
        )
        clients[index] = entry, body.take(envelope_bytes(shape))
    return clients


@dataclass(frozen=True)
class Listing(_OfMember, kind=CommitteeKind.LISTING, fields=(Field(_write_list, _read_list),)):
    """The list of clients as one member gets it, each with the envelope meant for that member."""

    clients: Listed


@dataclass(frozen=True)
class Opening(
    _OfMember,
    kind=CommitteeKind.OPENING,
    fields=(HASH, indices("openable set", lambda shape: shape.clients), SIGNATURE),
):
    """A member's statement on a list: its digest and the clients whose envelopes do not open."""

    listed: bytes
    failed: tuple[int, ...]
    signature: bytes


@dataclass(frozen=True)
class MemberAnswer(_OfMember, kind=CommitteeKind.MEMBER_ANSWER, fields=(HASH, WORDS, SIGNATURE)):
    """A member's sum of masks, and the digest of what it was asked to sum over."""

    settled: bytes
    words: memoryview
    signature: bytes


@dataclass(frozen=True)
class Loss(
    _OfMember, kind=CommitteeKind.LOSS, fields=(HASH, indices("lost members", lambda shape: shape.size), SIGNATURE)
):
    """A member's agreement on who is lost."""

    settled: bytes
    lost: tuple[int, ...]
    signature: bytes


def _read_values(body: Body, shape: CommitteeParameters) -> tuple[int, ...]:
    count = max(0, len(body) - SIGNATURE_BYTES) // SHARE_BYTES
    return tuple(read_element(raw) for raw in body.pieces(count, SHARE_BYTES))


_VALUES = Field(lambda values: (value.to_bytes(SHARE_BYTES, "little") for value in values), _read_values)


@dataclass(frozen=True)
class SeedShares(_OfMember, kind=CommitteeKind.SEED_SHARES, fields=(_VALUES, SIGNATURE)):
    """A member's shares of lost members' seeds, in the order of :meth:`by_client`."""

    values: tuple[int, ...]
    signature: bytes

    def by_client(self, lost: Collection[int], clients: Collection[int]) -> dict[tuple[int, int], int]:
        """Return the shares by lost member and client, both ascending; refuse a wrong number."""
        keys = [(gone, client) for gone in sorted(lost) for client in sorted(clients)]
        if len(keys) != len(self.values):
            raise refuse("message length", f"seed_shares has {len(self.values)} shares, not {len(keys)}")
        return dict(zip(keys, self.values, strict=True))
