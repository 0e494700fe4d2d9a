"""What all parties of a committee round must agree on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.primitives.agreement import (
    check_agreement,
    check_hash,
    check_keys,
    word_type,
)
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest, pack
from carefl_secure.secagg.primitives.late_model import _Ahead

__all__ = [
    "MAX_MEMBERS",
    "MIN_MEMBERS",
    "AheadCommitteeParameters",
    "CommitteeParameters",
    "committee_numbers",
]

MIN_MEMBERS = 2
MAX_MEMBERS = 5
_MAX_CLIENTS = (1 << 16) - 1


@dataclass(frozen=True)
class CommitteeParameters:
    """The agreement behind one committee round.

    Parameters
    ----------
    task, round, dimension, bits, model_hash, base_hash, plan_hash
        As in ``RoundParameters``.
    min_survivors
        The floor below which members refuse; at least 3.
    roster
        The Ed25519 public keys of all clients, 32 bytes each; a client's index is its place.
    members
        The Ed25519 public keys of the 2 to 5 committee members; a member's index is its place.
    spare
        How many members may be lost without losing the round. Each costs trust: at least
        ``2 * spare + 1`` members must be honest. 0 needs one honest member and all present.

    Raises
    ------
    ConfigError
        If a value is out of range or contradicts another.

    Guarantees
    ----------
    :meth:`context` is a collision-resistant hash of all of it and enters every signature,
    envelope and mask of the round.
    """

    task: bytes
    round: int
    dimension: int
    bits: int
    min_survivors: int
    model_hash: bytes
    base_hash: bytes
    plan_hash: bytes
    roster: tuple[bytes, ...]
    members: tuple[bytes, ...]
    spare: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        check_agreement(self, _MAX_CLIENTS)
        self._check_model()
        size = len(self.members)
        if not MIN_MEMBERS <= size <= MAX_MEMBERS:
            raise ConfigError(f"a committee has {MIN_MEMBERS} to {MAX_MEMBERS} members, not {size}")
        check_keys(self.members, "members of the committee")
        if not 0 <= self.spare <= (size - 1) // 2:
            raise ConfigError(
                f"spare for {size} members must lie in 0 .. {(size - 1) // 2}, not {self.spare}"
            )

    def _check_model(self) -> None:
        check_hash(self.model_hash, "model_hash")

    @property
    def clients(self) -> int:
        """Number of clients in the roster."""
        return len(self.roster)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def floor(self) -> int:
        """The smallest list of clients that a member answers for."""
        return self.min_survivors

    @property
    def quorum(self) -> int:
        """Members needed to open a round, and shares that rebuild a seed: ``size - spare``."""
        return self.size - self.spare

    @property
    def max_corrupt_members(self) -> int:
        """How many members may side with the server: ``size - 2 * spare - 1``.

        Two sets of ``quorum`` members then share an honest one, which says only once who is
        lost, so at most ``spare`` honest members' seeds are ever opened, and one honest member
        is left.
        """
        return self.size - 2 * self.spare - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one word."""
        return word_type(self.bits)

    def context(self) -> bytes:
        """Return the 32-byte hash of everything above."""
        return _context(self)

    def key_context(self) -> bytes:
        """Return what the members' keys are bound to; here the same as ``context()``."""
        return self.context()

    def bind(self, model_hash: bytes) -> CommitteeParameters:
        """Return the agreement with its model, where keys are made before that is known.

        Raises
        ------
        ProtocolError
            Always; what can be bound are ``AheadCommitteeParameters``.
        """
        raise refuse("model", "the round has had its model from the start; nothing is to be bound")

    def zeros(self) -> npt.NDArray[Any]:
        """Return a zero vector of the round's shape and type."""
        return np.zeros(self.dimension, self.dtype)


def committee_numbers(parameters: CommitteeParameters) -> bytes:
    """Write all numbers of an agreement one after another."""
    return pack(
        parameters.round,
        parameters.dimension,
        parameters.bits,
        parameters.min_survivors,
        parameters.clients,
        parameters.size,
        parameters.spare,
    )


@functools.lru_cache(maxsize=64)
def _context(parameters: CommitteeParameters) -> bytes:
    return digest(
        b"committee context",
        parameters.task,
        committee_numbers(parameters),
        parameters.model_hash,
        parameters.base_hash,
        parameters.plan_hash,
        *parameters.roster,
        *parameters.members,
    )


@dataclass(frozen=True, kw_only=True)
class AheadCommitteeParameters(_Ahead, CommitteeParameters):
    """The agreement behind a committee round whose members' keys are made ahead.

    Parameters
    ----------
    model_hash
        Empty until :meth:`bind`; 32 bytes then.

    Raises
    ------
    ConfigError
        As ``CommitteeParameters``.

    Guarantees
    ----------
    As ``AheadParameters``: the members' keys are bound to all but the model, everything else to the
    model too. A client that was told another model than a member seals envelopes which that member
    does not open.
    """

    def key_context(self) -> bytes:
        """Return the 32-byte hash of everything but the model."""
        return _committee_key_context(self)


@functools.lru_cache(maxsize=64)
def _committee_key_context(parameters: AheadCommitteeParameters) -> bytes:
    return digest(
        b"committee key context",
        parameters.task,
        committee_numbers(parameters),
        parameters.base_hash,
        parameters.plan_hash,
        *parameters.roster,
        *parameters.members,
    )
