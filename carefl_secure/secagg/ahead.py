"""Rounds whose keys are made before their model is known, on the way of the round before.

The agreement then falls in two. What is known early, all but the model, is the *key context*: it
stands behind advertisements and shares. Once the model is known, both sides *bind* it, and from
there on mask keys and signatures stand on a hash of key context and model.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from carefl_secure.secagg.committee_parameters import CommitteeParameters, committee_numbers
from carefl_secure.secagg.crypto import digest
from carefl_secure.secagg.parameters import RoundParameters, agreed_numbers, check_hash
from carefl_secure.secagg.refusal import refuse

__all__ = ["AheadCommitteeParameters", "AheadParameters", "bound_context"]


def bound_context(key_context: bytes, model_hash: bytes) -> bytes:
    """Return the context of a round whose keys were made ahead.

    Raises
    ------
    ProtocolError
        If the model is not known yet (``model_hash`` is empty).
    """
    if not model_hash:
        raise refuse("model", "the keys were made ahead and are not bound to a model yet")
    return digest(b"bound context", key_context, model_hash)


@dataclass(frozen=True, kw_only=True)
class _Ahead(ABC):
    """A model that comes later than the rest of an agreement."""

    model_hash: bytes = b""

    @abstractmethod
    def key_context(self) -> bytes:
        """Return the 32-byte hash of everything but the model."""

    def _check_model(self) -> None:
        if self.model_hash:
            check_hash(self.model_hash, "model_hash")

    def context(self) -> bytes:
        """Return the 32-byte hash of everything.

        Raises
        ------
        ProtocolError
            If the model is not known yet.
        """
        return bound_context(self.key_context(), self.model_hash)

    def bind(self, model_hash: bytes) -> Self:
        """Return the agreement with its model.

        Raises
        ------
        ProtocolError
            If it has one.
        ConfigError
            If the hash is not 32 bytes.
        """
        if self.model_hash:
            raise refuse("model", "the keys are bound to a model already; they serve one")
        check_hash(model_hash, "model_hash")
        return dataclasses.replace(self, model_hash=model_hash)


@dataclass(frozen=True, kw_only=True)
class AheadParameters(_Ahead, RoundParameters):
    """The agreement behind a round among peers whose keys are made ahead.

    Parameters
    ----------
    model_hash
        Empty until :meth:`bind`; 32 bytes then.

    Raises
    ------
    ConfigError
        As ``RoundParameters``.

    Guarantees
    ----------
    :meth:`key_context` is a collision-resistant hash of all but the model, in words that no round
    of another form uses; :meth:`context` of that and the model. Two clients that were told
    different models derive different mask keys for one another and sign different survivor sets, so
    a sum over both does not open: nothing but uniform words comes out.
    """

    def key_context(self) -> bytes:
        """Return the 32-byte hash of everything but the model."""
        return _key_context(self)

    def latest_context(self) -> bytes:
        """Return what a saved state is bound to: all that is known."""
        return self.context() if self.model_hash else self.key_context()


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
def _key_context(parameters: AheadParameters) -> bytes:
    return digest(
        b"key context",
        parameters.task,
        agreed_numbers(parameters),
        parameters.base_hash,
        parameters.plan_hash,
        *parameters.roster,
    )


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
