"""The messages of an encrypted round as bytes; the 16-byte header is that of ``wire.py``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.encrypted.parameters import EncryptedParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer, words_digest
from carefl_secure.secagg.primitives.framing import exact, header, read_body

__all__ = ["EncryptedKind", "EncryptedSum", "EncryptedUpload", "OpenedSum"]

_U32 = struct.Struct("<I")
_SIGNATURE = 64
_LARGEST = 1 << 18  # a ciphertext has 128 kB before compression


class EncryptedKind(IntEnum):
    """The types of message that an encrypted round has and the peers' has not."""

    UPLOAD = 32
    SUM = 33
    OPENED = 34


def _join(chunks: tuple[bytes, ...]) -> bytes:
    return b"".join(part for chunk in chunks for part in (_U32.pack(len(chunk)), chunk))


def _split(raw: memoryview, count: int, kind: EncryptedKind) -> tuple[bytes, ...]:
    chunks = []
    for _ in range(count):
        if len(raw) < _U32.size:
            raise refuse("message length", f"{kind.name.lower()} ends before a ciphertext")
        (size,) = _U32.unpack_from(raw)
        if size > _LARGEST or _U32.size + size > len(raw):
            raise refuse("message length", f"a ciphertext of {size} bytes does not fit")
        chunks.append(bytes(raw[_U32.size : _U32.size + size]))
        raw = raw[_U32.size + size :]
    exact(raw, 0, kind)
    return tuple(chunks)


@dataclass(frozen=True)
class EncryptedUpload:
    """Step 2: the masked vector under the key holder's key, signed."""

    chunks: tuple[bytes, ...]
    signature: bytes

    def digest(self) -> bytes:
        """Hash the ciphertexts with their lengths."""
        return words_digest(_join(self.chunks))

    def encode(self, index: int, context: bytes) -> bytes:
        """Return the message."""
        return header(EncryptedKind.UPLOAD, index, context) + _join(self.chunks) + self.signature

    @classmethod
    def parse(cls, message: Buffer, index: int, parameters: EncryptedParameters) -> EncryptedUpload:
        """Read the message of client ``index``; ciphertexts are not looked into."""
        kind = EncryptedKind.UPLOAD
        body = read_body(
            message, kind, index, count=parameters.clients, context=parameters.context()
        )
        if len(body) < _SIGNATURE:
            raise refuse("message length", "upload ends before its signature")
        return cls(_split(body[:-_SIGNATURE], parameters.chunks, kind), bytes(body[-_SIGNATURE:]))


@dataclass(frozen=True)
class EncryptedSum:
    """The sum of all uploads, from the aggregator to the key holder."""

    chunks: tuple[bytes, ...]

    def encode(self, context: bytes) -> bytes:
        """Return the message."""
        return header(EncryptedKind.SUM, 0, context) + _join(self.chunks)

    @classmethod
    def parse(cls, message: Buffer, parameters: EncryptedParameters) -> EncryptedSum:
        """Read the message; ciphertexts are not looked into."""
        kind = EncryptedKind.SUM
        body = read_body(
            message, kind, 0, count=1, context=parameters.context(), party="aggregator"
        )
        return cls(_split(body, parameters.chunks, kind))


@dataclass(frozen=True)
class OpenedSum:
    """The decrypted, still masked sum, from the key holder to the aggregator, signed."""

    residues: bytes
    signature: bytes

    def encode(self, context: bytes) -> bytes:
        """Return the message."""
        return header(EncryptedKind.OPENED, 0, context) + self.residues + self.signature

    @classmethod
    def parse(cls, message: Buffer, parameters: EncryptedParameters) -> OpenedSum:
        """Read the message; only the layout is checked."""
        kind = EncryptedKind.OPENED
        body = read_body(
            message, kind, 0, count=1, context=parameters.context(), party="key holder"
        )
        size = 8 * parameters.slots
        exact(body, size + _SIGNATURE, kind)
        return cls(bytes(body[:size]), bytes(body[size:]))

    def numbers(self) -> npt.NDArray[np.uint64]:
        """Return the residues as numbers."""
        return np.frombuffer(self.residues, "<u8").astype(np.uint64)
