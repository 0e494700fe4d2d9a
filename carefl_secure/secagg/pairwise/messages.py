"""The messages of pairwise masking as bytes; `docs/protocol.md` has the layouts."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar, Self

import numpy.typing as npt

from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer, words_digest
from carefl_secure.secagg.primitives.framing import (
    HASH_BYTES,
    SIGNATURE_BYTES,
    Body,
    Message,
    Shape,
    words_of,
)
from carefl_secure.secagg.primitives.shamir import SHARE_BYTES, read_element

__all__ = [
    "Advertisement",
    "Answer",
    "Consent",
    "Kind",
    "Secret",
    "Share",
    "SignedUpload",
    "Upload",
    "pack_pair",
    "unpack_pair",
]

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
class Advertisement(Message):
    """Step 0: two public keys and the commitment to the self-mask secret; 176 bytes."""

    encryption_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    KIND: ClassVar[IntEnum] = Kind.ADVERTISEMENT
    BEFORE_MODEL: ClassVar[bool] = True

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.encryption_key, self.mask_key, self.commitment, self.signature

    @classmethod
    def read(cls, body: Body, shape: Shape) -> Self:
        """Take the fields."""
        encryption_key, mask_key, commitment = body.pieces(3, HASH_BYTES)
        return cls(encryption_key, mask_key, commitment, body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Share(Message):
    """Step 1: a client's shares of both its secrets, sealed to one other client; 100 bytes."""

    recipient: int
    sealed: bytes

    KIND: ClassVar[IntEnum] = Kind.SHARE
    BEFORE_MODEL: ClassVar[bool] = True

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return _U16.pack(self.recipient), self.sealed

    @classmethod
    def read(cls, body: Body, shape: Shape) -> Self:
        """Take the fields."""
        return cls(body.number(), body.take(SEALED_BYTES))

    def to(self, recipient: int) -> Self:
        """Return the message if it is for ``recipient``; refuse it otherwise."""
        if self.recipient != recipient:
            raise refuse(
                "share recipient", f"it is for client {self.recipient}, not for {recipient}"
            )
        return self


class SignedUpload(Message):
    """Step 2 in any form: a vector that is hidden, and a signature over its digest."""

    signature: bytes

    @abstractmethod
    def digest(self) -> bytes:
        """Hash what is signed."""

    @abstractmethod
    def signed(self, signature: bytes) -> Self:
        """Return the upload with its signature."""


@dataclass(frozen=True)
class Upload(SignedUpload):
    """Step 2: the masked vector, signed; 80 bytes and the words."""

    words: memoryview
    signature: bytes = b""

    KIND: ClassVar[IntEnum] = Kind.UPLOAD

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.words, self.signature

    @classmethod
    def read(cls, body: Body, shape: Shape) -> Self:
        """Take the fields without copying the words."""
        return cls(body.words(shape), body.take(SIGNATURE_BYTES))

    def digest(self) -> bytes:
        """Hash the words."""
        return words_digest(self.words)

    def signed(self, signature: bytes) -> Self:
        """Return the upload with its signature."""
        return replace(self, signature=signature)

    def vector(self, shape: Shape) -> npt.NDArray[Any]:
        """Return the words as a read-only vector over the message's own bytes."""
        return words_of(self.words, shape)


@dataclass(frozen=True)
class Consent(Message):
    """Step 3: a signature over the two survivor sets; 80 bytes. The sets do not travel in it."""

    signature: bytes

    KIND: ClassVar[IntEnum] = Kind.CONSENT

    def parts(self) -> Iterable[Buffer]:
        """Return the one field."""
        return (self.signature,)

    @classmethod
    def read(cls, body: Body, shape: Shape) -> Self:
        """Take the one field."""
        return cls(body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Answer(Message):
    """Step 4: one share per client, of one of its two secrets, signed; 82 bytes and 36 each."""

    shares: Mapping[int, tuple[Secret, int]]
    signature: bytes

    KIND: ClassVar[IntEnum] = Kind.ANSWER

    def fields(self) -> bytes:
        """Return the signed part: a count and the entries by ascending client."""
        entries = (
            _ENTRY.pack(peer, kind, value.to_bytes(SHARE_BYTES, "little"))
            for peer, (kind, value) in sorted(self.shares.items())
        )
        return _U16.pack(len(self.shares)) + b"".join(entries)

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.fields(), self.signature

    @classmethod
    def read(cls, body: Body, shape: Shape) -> Self:
        """Take one entry per client, ascending."""
        shares: dict[int, tuple[Secret, int]] = {}
        last, count = -1, body.number()
        body.expect(count * _ENTRY.size + SIGNATURE_BYTES)
        for peer, kind, raw in _ENTRY.iter_unpack(body.view(count * _ENTRY.size)):
            if not last < peer < shape.clients:
                raise refuse("answer peers", f"client {peer} repeats, is out of order or unknown")
            shares[peer] = (_secret(kind), read_element(raw))
            last = peer
        return cls(shares, body.take(SIGNATURE_BYTES))


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
