"""Parameters whose model is bound after the keys are exchanged."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from carefl_secure.secagg.primitives.agreement import check_hash
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest

__all__ = ["bound_context"]


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
