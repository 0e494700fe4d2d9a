"""What the parties of every protocol agree on before a round, and the hashes that bind them."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.primitives.crypto import digest, pack, refuse, statement, verify

MIN_CLIENTS = 3
"""A sum over two reveals to each the other's vector."""

_DIMENSION_LIMIT = 1 << 31
_COUNTER_LIMIT = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement behind one round, whatever the protocol.

    Parameters
    ----------
    task
        Name of the run; not secret.
    dimension, bits
        Length of the integer vectors (after padding); size of one word, 16 or 32. Sums are taken modulo ``2**bits``.
    base_hash, plan_hash, model_hash
        32 bytes each: the frozen base model with the code and configuration; the privacy and encoding plan; the
        trained vector at the start of the round (empty until :meth:`bind`).
    roster
        The Ed25519 public keys of all clients, agreed out of band. A client's index is its place here.

    Guarantees
    ----------
    :meth:`key_context` is a collision-resistant hash of all but the model and differs from protocol to protocol; keys
    are bound to it. :meth:`context` hashes that and the model; masks and everything after them are bound to it. Two
    clients that were sent different models derive different mask keys for one another, so a sum over both does not
    open.
    """

    task: bytes
    round: int
    dimension: int
    bits: int
    min_survivors: int
    base_hash: bytes
    plan_hash: bytes
    roster: tuple[bytes, ...]
    model_hash: bytes = b""

    LABEL: ClassVar[bytes]
    """Sets the hashes of one protocol apart from those of the others."""

    MAX_CLIENTS: ClassVar[int]

    def __post_init__(self) -> None:
        count = self.clients
        if not MIN_CLIENTS <= count <= self.MAX_CLIENTS:
            raise ConfigError(f"a secure sum takes {MIN_CLIENTS} to {self.MAX_CLIENTS} clients, not {count}")
        check_keys(self.roster, "clients of the roster")
        if self.bits not in (16, 32):
            raise ConfigError(f"a word has 16 or 32 bits, not {self.bits}")
        if not 1 <= self.dimension < _DIMENSION_LIMIT:
            raise ConfigError(f"the dimension must lie in 1 .. 2**31 - 1, not {self.dimension}")
        if not 0 <= self.round < _COUNTER_LIMIT:
            raise ConfigError(f"the round number must lie in 0 .. 2**63 - 1, not {self.round}")
        if not MIN_CLIENTS <= self.min_survivors <= count:
            raise ConfigError(f"min_survivors must lie in {MIN_CLIENTS} .. {count}, not {self.min_survivors}")
        check_hash(self.base_hash, "base_hash")
        check_hash(self.plan_hash, "plan_hash")
        if self.model_hash:
            check_hash(self.model_hash, "model_hash")

    @property
    def clients(self) -> int:
        """Number of clients in the roster."""
        return len(self.roster)

    @property
    def required_survivors(self) -> int:
        """The fewest clients that anyone goes on with."""
        return self.min_survivors

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one word."""
        return np.dtype(np.uint16 if self.bits == 16 else np.uint32)

    def zeros(self) -> npt.NDArray[Any]:
        """Return a zero vector of the round's shape and type."""
        return np.zeros(self.dimension, self.dtype)

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers of the agreement, in the order in which they are hashed."""
        raise NotImplementedError

    def keys_of(self, party: str) -> tuple[bytes, ...]:
        """Return the Ed25519 public keys of a kind of party, by its index."""
        if party != "client":
            raise refuse("roster", f"this round has no {party}s")
        return self.roster

    def check_signature(
        self, index: int, signature: bytes, label: bytes, fields: tuple[bytes, ...], party: str = "client"
    ) -> None:
        """Refuse a message that party ``index`` did not sign."""
        verify(self.keys_of(party)[index], signature, index, label, *fields, party=party)

    def check_statement(
        self,
        index: int,
        signature: bytes,
        label: bytes,
        transcript_hash: bytes,
        *content: bytes,
        party: str = "client",
    ) -> None:
        """Refuse what party ``index`` did not sign in this round, once all keys are known."""
        self.check_signature(
            index, signature, label, statement(self.context(), transcript_hash, index, *content), party
        )

    def parties(self) -> tuple[bytes, ...]:
        """Return the keys of all parties, in the order in which they are hashed."""
        return self.roster

    def key_context(self) -> bytes:
        """Return the 32-byte hash of everything but the model."""
        return _key_context(self)

    def context(self) -> bytes:
        """Return the 32-byte hash of everything; refused before :meth:`bind`."""
        if not self.model_hash:
            raise refuse("model", "the keys of this round are not bound to a model yet")
        return _context(self)

    def latest_context(self) -> bytes:
        """Return the hash of all that is known: a saved state is bound to it."""
        return self.context() if self.model_hash else self.key_context()

    def bind(self, model_hash: bytes) -> Self:
        """Return the agreement with its model (32 bytes); refused if it has one."""
        if self.model_hash:
            raise refuse("model", "the keys are bound to a model already; they serve one")
        check_hash(model_hash, "model_hash")
        return dataclasses.replace(self, model_hash=model_hash)


@functools.lru_cache(maxsize=64)
def _context(agreement: Agreement) -> bytes:
    return digest(b"bound context", _key_context(agreement), agreement.model_hash)


@functools.lru_cache(maxsize=64)
def _key_context(agreement: Agreement) -> bytes:
    label, numbers = agreement.LABEL + b" key context", pack(*agreement.numbers())
    hashes = (agreement.base_hash, agreement.plan_hash)
    return digest(label, agreement.task, numbers, *hashes, *agreement.parties())


def check_keys(keys: tuple[bytes, ...], whose: str) -> None:
    """Refuse keys that are not 32 bytes each and all different."""
    if not all(_is_32_bytes(key) for key in keys):
        raise ConfigError("every roster entry is an Ed25519 public key of 32 bytes")
    if len(set(keys)) != len(keys):
        raise ConfigError(f"two {whose} have the same key; one party, one key")


def check_hash(value: object, name: str) -> None:
    """Refuse what is not 32 bytes."""
    if not _is_32_bytes(value):
        raise ConfigError(f"{name} is a hash of 32 bytes")


def _is_32_bytes(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 32
