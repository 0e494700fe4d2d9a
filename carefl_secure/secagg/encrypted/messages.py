"""The messages of an encrypted round as bytes; `docs/protocol.md` has the layouts."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.framing import SIGNATURE, Body, Field, Message

_U32 = struct.Struct("<I")
_LARGEST = 1 << 18  # a ciphertext has 128 kB before compression


class EncryptedKind(IntEnum):
    """The types of message that an encrypted round has and pairwise masking has not."""

    UPLOAD = 32
    OPENED = 34


def _read_chunks(body: Body, shape: Any) -> tuple[bytes, ...]:
    """Take the ciphertexts, which are not looked into."""
    chunks = []
    for _ in range(shape.chunks):
        (size,) = _U32.unpack(body.view(_U32.size))
        if size > _LARGEST:
            raise refuse("message length", f"a ciphertext of {size} bytes is too long")
        chunks.append(body.take(size))
    return tuple(chunks)


_CHUNKS = Field(lambda chunks: (part for one in chunks for part in (_U32.pack(len(one)), one)), _read_chunks)
_RESIDUES = Field(lambda value: (value,), lambda body, shape: body.take(8 * shape.slots))


@dataclass(frozen=True)
class EncryptedUpload(Message, kind=EncryptedKind.UPLOAD, fields=(_CHUNKS, SIGNATURE)):
    """Step 2: the masked vector under the key holder's key, signed."""

    chunks: tuple[bytes, ...]
    signature: bytes = b""


@dataclass(frozen=True)
class OpenedSum(Message, kind=EncryptedKind.OPENED, fields=(_RESIDUES, SIGNATURE)):
    """The decrypted, still masked sum, from the key holder to the aggregator, signed."""

    residues: bytes
    signature: bytes

    PARTY: ClassVar[str] = "key holder"

    @classmethod
    def senders(cls, shape: Any) -> int:
        """Return 1: its index is 0."""
        return 1

    def numbers(self) -> npt.NDArray[np.uint64]:
        """Return the residues as numbers."""
        return np.frombuffer(self.residues, "<u8").astype(np.uint64)
