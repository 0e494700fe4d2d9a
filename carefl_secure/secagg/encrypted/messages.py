"""The messages of an encrypted round as bytes; `docs/protocol.md` has the layouts."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.pairwise.messages import SignedUpload
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer, words_digest
from carefl_secure.secagg.primitives.framing import SIGNATURE_BYTES, Body, Message

__all__ = ["EncryptedKind", "EncryptedSum", "EncryptedUpload", "OpenedSum"]

_U32 = struct.Struct("<I")
_LARGEST = 1 << 18  # a ciphertext has 128 kB before compression


class EncryptedKind(IntEnum):
    """The types of message that an encrypted round has and pairwise masking has not."""

    UPLOAD = 32
    SUM = 33
    OPENED = 34


def _join(chunks: tuple[bytes, ...]) -> bytes:
    return b"".join(part for chunk in chunks for part in (_U32.pack(len(chunk)), chunk))


def _chunks(body: Body, count: int) -> tuple[bytes, ...]:
    chunks = []
    for _ in range(count):
        (size,) = _U32.unpack(body.view(_U32.size))
        if size > _LARGEST:
            raise refuse("message length", f"a ciphertext of {size} bytes is too long")
        chunks.append(body.take(size))
    return tuple(chunks)


class _ToOne(Message):
    """A message that only one party can send; its index is 0."""

    @classmethod
    def senders(cls, shape: Any) -> int:
        """Return how many parties can send it."""
        return 1


@dataclass(frozen=True)
class EncryptedUpload(SignedUpload):
    """Step 2: the masked vector under the key holder's key, signed."""

    chunks: tuple[bytes, ...]
    signature: bytes = b""

    KIND: ClassVar[IntEnum] = EncryptedKind.UPLOAD

    def digest(self) -> bytes:
        """Hash the ciphertexts with their lengths."""
        return words_digest(_join(self.chunks))

    def signed(self, signature: bytes) -> Self:
        """Return the upload with its signature."""
        return replace(self, signature=signature)

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return _join(self.chunks), self.signature

    @classmethod
    def read(cls, body: Body, shape: Any) -> Self:
        """Take the ciphertexts, which are not looked into, and the signature."""
        chunks = _chunks(body, shape.chunks)
        return cls(chunks, body.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class EncryptedSum(_ToOne):
    """The sum of all uploads, from the aggregator to the key holder."""

    chunks: tuple[bytes, ...]

    KIND: ClassVar[IntEnum] = EncryptedKind.SUM
    PARTY: ClassVar[str] = "aggregator"

    def parts(self) -> Iterable[Buffer]:
        """Return the one field."""
        return (_join(self.chunks),)

    @classmethod
    def read(cls, body: Body, shape: Any) -> Self:
        """Take the ciphertexts, which are not looked into."""
        return cls(_chunks(body, shape.chunks))


@dataclass(frozen=True)
class OpenedSum(_ToOne):
    """The decrypted, still masked sum, from the key holder to the aggregator, signed."""

    residues: bytes
    signature: bytes

    KIND: ClassVar[IntEnum] = EncryptedKind.OPENED
    PARTY: ClassVar[str] = "key holder"

    def parts(self) -> Iterable[Buffer]:
        """Return the fields in order."""
        return self.residues, self.signature

    @classmethod
    def read(cls, body: Body, shape: Any) -> Self:
        """Take the fields."""
        return cls(body.take(8 * shape.slots), body.take(SIGNATURE_BYTES))

    def numbers(self) -> npt.NDArray[np.uint64]:
        """Return the residues as numbers."""
        return np.frombuffer(self.residues, "<u8").astype(np.uint64)
