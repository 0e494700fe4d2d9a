"""What the parties of a round of pairwise masking agree on, and its messages as bytes (see `docs/protocol.md`)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Self

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.pairwise.graph_planner import tolerated_colluders
from carefl_secure.secagg.primitives.agreement import Agreement
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
    octets,
)
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

MAX_CLIENTS = 1000
"""Above this even a sparse graph costs too much; 300 is where the complete one does."""

_U16 = struct.Struct("<H")
_ENTRY = struct.Struct(f"<HB{SHARE_BYTES}s")
_TAG = 16

SEALED_BYTES = 2 * SHARE_BYTES + _TAG


def default_threshold(clients: int) -> int:
    """Return ``floor(2 * clients / 3) + 1``, the smallest threshold that is safe here.

    Two sets of so many signers share more than a third of the clients, so fewer colluders cannot sign two survivor
    sets.
    """
    return 2 * clients // 3 + 1


@dataclass(frozen=True, kw_only=True)
class RoundParameters(Agreement):
    """The agreement behind one round of pairwise masking.

    Parameters
    ----------
    threshold
        Shares that rebuild a secret, and signatures that a survivor set needs; at least `default_threshold`.
    neighbours
        Masks per client on a sparse graph, even, from ``plan_graph``; None for the complete graph.
    share_threshold
        On a sparse graph, how many of ``neighbours + 1`` holders rebuild a secret; ``threshold`` is of signatures.
    """

    threshold: int
    neighbours: int | None = None
    share_threshold: int | None = None

    LABEL: ClassVar[bytes] = b"pairwise"
    MAX_CLIENTS: ClassVar[int] = MAX_CLIENTS

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.clients
        if not default_threshold(count) <= self.threshold <= count:
            raise ConfigError(
                f"the threshold for {count} clients must lie in"
                f" {default_threshold(count)} .. {count}, not {self.threshold}"
            )
        self._check_graph()

    def _check_graph(self) -> None:
        degree, threshold = self.neighbours, self.share_threshold
        if degree is None and threshold is None:
            return
        if degree is None or threshold is None:
            raise ConfigError("a sparse graph needs neighbours and share_threshold; set both")
        most = self.required_survivors - 2
        if degree % 2 or not 4 <= degree <= most:
            raise ConfigError(
                f"neighbours must be even and lie in 4 .. {most} (two below the fewest"
                f" survivors), not {degree}; for small cohorts leave it out"
            )
        if not degree // 2 + 2 <= threshold <= degree:
            raise ConfigError(
                f"share_threshold for {degree} neighbours must lie in {degree // 2 + 2} .. {degree}, not {threshold}"
            )

    @property
    def required_survivors(self) -> int:
        """The fewest clients that anyone goes on with: the threshold or min_survivors."""
        return max(self.threshold, self.min_survivors)

    @property
    def rebuilding(self) -> int:
        """How many shares rebuild a secret: ``share_threshold`` or, if complete, the threshold."""
        return self.threshold if self.share_threshold is None else self.share_threshold

    @property
    def max_colluders(self) -> int:
        """How many clients may side with the server: at most ``2 * threshold - clients - 1``.

        Every honest client signs one survivor set, so ``h`` honest clients and ``c`` colluders who sign everything
        reach two sets of ``threshold`` signatures only if ``2 * (threshold - c) <= h = clients - c``. On a sparse
        graph :func:`tolerated_colluders` at a failure probability of ``2**-80`` is a second limit.
        """
        most = 2 * self.threshold - self.clients - 1
        if self.neighbours is None or self.share_threshold is None:
            return most
        return min(most, tolerated_colluders(self.required_survivors, self.neighbours, self.share_threshold))

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        graph = () if self.neighbours is None else (self.neighbours, self.rebuilding)
        return (self.round, self.dimension, self.bits, self.threshold, self.min_survivors, self.clients, *graph)


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


def _read_shares(body: Body, shape: Any) -> dict[int, tuple[Secret, int]]:
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
