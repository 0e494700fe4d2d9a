"""What the parties of an encrypted round agree on, and its messages as bytes (layouts: `docs/protocol.md`)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.encrypted.bfv import COEFFICIENT_PRIMES, DEGREE, PLAIN_MODULUS
from carefl_secure.secagg.encrypted.packing import check_fields, slots
from carefl_secure.secagg.pairwise.messages import RoundParameters
from carefl_secure.secagg.primitives.agreement import check_hash
from carefl_secure.secagg.primitives.crypto import refuse
from carefl_secure.secagg.primitives.framing import SIGNATURE, Body, Field, Message

_U32 = struct.Struct("<I")
_LARGEST = 1 << 18  # a ciphertext has 128 kB before compression


@dataclass(frozen=True, kw_only=True)
class EncryptedParameters(RoundParameters):
    """The agreement behind one encrypted round: that of pairwise masking, and the key holder's.

    Words are read as signed integers; ``bits`` is the size of the words that go in and come out.

    Parameters
    ----------
    key_holder, public_key
        The key holder's Ed25519 public key; SHA-256 of its BFV public key for this round.
    value_bound, field_bits
        Largest magnitude of a client's integer; ``clients`` times it fits a field of 20 or 30 bits (3 or 2 per slot).

    Guarantees
    ----------
    No sum of vectors within ``value_bound`` overflows. :meth:`key_context` binds every message to all of it, so a
    client that was given another public key refuses, or is refused.
    """

    key_holder: bytes
    public_key: bytes
    value_bound: int
    field_bits: int = 20

    LABEL: ClassVar[bytes] = b"encrypted"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hash(self.key_holder, "key_holder")
        check_hash(self.public_key, "public_key")
        check_fields(self.value_bound, self.field_bits, self.clients, self.bits)

    @property
    def slots(self) -> int:
        """Numbers per vector."""
        return slots(self.dimension, self.field_bits)

    @property
    def chunks(self) -> int:
        """Ciphertexts per vector."""
        return -(-self.slots // DEGREE)

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        cipher = (DEGREE, PLAIN_MODULUS, *COEFFICIENT_PRIMES)
        return (*super().numbers(), self.value_bound, self.field_bits, *cipher)

    def keys_of(self, party: str) -> tuple[bytes, ...]:
        """Return the Ed25519 public keys of the clients, or of the key holder."""
        return (self.key_holder,) if party == "key holder" else super().keys_of(party)

    def parties(self) -> tuple[bytes, ...]:
        """Return the keys of clients and key holder, and the hash of the public key."""
        return (*self.roster, self.key_holder, self.public_key)


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
