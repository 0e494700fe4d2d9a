"""The phases of a round: every party takes its steps in order, and each of them once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeySource
from carefl_secure.secagg.primitives.agreement import Agreement
from carefl_secure.secagg.primitives.checks import refuse

__all__ = ["Participant", "ServerParticipant"]

A = TypeVar("A", bound=Agreement)
P = TypeVar("P", bound=IntEnum)


class _Party(ABC, Generic[A, P]):
    """Whoever takes part in one round, on the agreement behind it."""

    def __init__(self, parameters: A) -> None:
        self._parameters = parameters

    @property
    def parameters(self) -> A:
        """The agreement, as far as it is known."""
        return self._parameters

    @property
    @abstractmethod
    def phase(self) -> P:
        """Where the round stands for this party."""

    @property
    def _context(self) -> bytes:
        return self._parameters.context()


class Participant(_Party[A, P]):
    """A client or a helper: every step is answered once, in order.

    ``index`` is the place among its kind, ``identity`` the private half of its key in the
    agreement; ``keys`` gives fresh keys, ``SystemKeySource()`` outside tests.
    """

    def __init__(
        self, parameters: A, index: int, identity: Ed25519PrivateKey, keys: KeySource
    ) -> None:
        super().__init__(parameters)
        self._index = index
        self._identity = identity
        self._keys = keys

    @property
    def index(self) -> int:
        """Place of this party among those of its kind."""
        return self._index

    def _require(self, last: P, step: str) -> None:
        """Refuse ``step`` unless ``last`` is the last step that was answered."""
        phase = self.phase
        if phase == last:
            return
        if phase > last:
            raise refuse("step order", f"{step} was answered before, or the round is closed")
        raise refuse("step order", f"{step} is not due yet, the last step was {phase.name.lower()}")


class ServerParticipant(_Party[A, P]):
    """The server: one message per party and phase; the last two phases are FINISHED and FAILED."""

    def __init__(self, parameters: A, first: P) -> None:
        super().__init__(parameters)
        self._phase = first

    @property
    def phase(self) -> P:
        """Where the round stands."""
        return self._phase

    def _accept(self, phase: P, who: str, *, repeated: bool, member: bool) -> None:
        """Refuse a message that is not due in this phase from this party."""
        if self._phase != phase:
            raise refuse(
                "step order",
                f"a message of phase {phase.name.lower()} came in phase {self._phase.name.lower()}",
            )
        if not member:
            raise refuse("membership", f"{who} has no part in this phase")
        if repeated:
            raise refuse("duplicate message", f"{who} has sent one in this phase already")

    def _ends(self, phase: P) -> bool:
        """Tell whether ``phase`` is to be ended now; False if it was ended before."""
        over = self._phase.name in ("FINISHED", "FAILED")
        if over or self._phase < phase:
            raise refuse("step order", f"the round stands at {self._phase.name.lower()}")
        return self._phase == phase

    def _fail(self, error: ProtocolError) -> ProtocolError:
        """End the round for good, drop what was collected, and return the error to raise."""
        self._phase = type(self._phase)["FAILED"]
        self._drop()
        return error

    @abstractmethod
    def _drop(self) -> None:
        """Forget the sum and whatever could open it."""
