"""A party's part in a round: every party takes its steps in order, and each of them once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Any, Generic, TypeVar

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeySource
from carefl_secure.secagg.primitives.agreement import Agreement
from carefl_secure.secagg.primitives.crypto import check_place, refuse, sign, statement

A = TypeVar("A", bound=Agreement)
P = TypeVar("P", bound=IntEnum)


class ClientSum(ABC):
    """One client's part in the sum of one round, its methods in the order of the calls: bytes in, bytes out.

    Every protocol has `bind`, `receive` and `mask`; other steps are refused unless a protocol overrides them.
    """

    def advertise(self) -> bytes:
        """Return the first message, where there is one before the vector."""
        raise _not_here("advertise")

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the round's secrets among the other clients."""
        raise _not_here("share")

    @abstractmethod
    def bind(self, model_hash: bytes) -> None:
        """Bind the keys to the model of the round (32 bytes), once."""

    @abstractmethod
    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Open and check what the helpers or the other clients sent, by their index."""

    @abstractmethod
    def mask(self, vector: npt.NDArray[Any], messages: Mapping[int, bytes] | None = None) -> bytes:
        """Return the upload that hides a vector, words of shape [padded], not changed; once.

        ``messages`` are as in `receive`; None where that was called before.
        """

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who is in the sum."""
        raise _not_here("sign")

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Give what takes the masks off the sum."""
        raise _not_here("unmask")

    def save(self) -> bytes:
        """Return what the next step needs, secrets sealed; nothing where no secret outlives one."""
        return b""

    def close(self) -> None:
        """Erase every secret; nothing to do where none outlives a step."""
        return


def _not_here(step: str) -> ProtocolError:
    return ProtocolError(
        f"step {step} is no part of this aggregation protocol; client and server run different "
        "ones: compare federation.aggregation"
    )


class _Party(Generic[A, P]):
    """Whoever takes part in one round, on the agreement behind it."""

    def __init__(self, parameters: A, first: P) -> None:
        self._parameters = parameters
        self._phase = first

    @property
    def parameters(self) -> A:
        """The agreement, as far as it is known."""
        return self._parameters

    @property
    def phase(self) -> P:
        """Where the round stands for this party: its last step, or the server's present one."""
        return self._phase

    @property
    def _context(self) -> bytes:
        return self._parameters.context()

    def bind(self, model_hash: bytes) -> None:
        """Bind the keys to the round's model (32 bytes), once."""
        self._parameters = self._parameters.bind(model_hash)


class Participant(_Party[A, P]):
    """A client or helper, by its ``index`` among its kind and private key: every step is answered once, in order."""

    FIRST: P
    PARTY: str = "client"

    def __init__(self, parameters: A, index: int, identity: Ed25519PrivateKey, keys: KeySource) -> None:
        check_place(identity, index, parameters.keys_of(self.PARTY), party=self.PARTY)
        super().__init__(parameters, self.FIRST)
        self._index = index
        self._identity = identity
        self._keys = keys

    @property
    def index(self) -> int:
        """Place of this party among those of its kind."""
        return self._index

    def _require(self, last: P, step: str) -> None:
        """Refuse ``step`` unless ``last`` is the last step that was answered."""
        if self.phase > last:
            raise refuse("step order", f"{step} was answered before, or the round is closed")
        if self.phase < last:
            raise refuse("step order", f"{step} is not due yet, the last step was {self.phase.name.lower()}")

    def _sign(self, label: bytes, fields: tuple[bytes, ...]) -> bytes:
        return sign(self._identity, label, *fields)

    def _sign_statement(self, label: bytes, transcript_hash: bytes, *content: bytes) -> bytes:
        """Sign a statement of this party, as `Agreement.check_statement` checks it."""
        return self._sign(label, statement(self._context, transcript_hash, self._index, *content))


class ServerParticipant(_Party[A, P], ABC):
    """The server, which checks parties of kind ``SENDER``; its last two phases are FINISHED and FAILED."""

    SENDER: str = "client"
    _transcript_hash = b""

    def _check(self, index: int, signature: bytes, label: bytes, *content: bytes) -> None:
        parameters, transcript_hash = self._parameters, self._transcript_hash
        parameters.check_statement(index, signature, label, transcript_hash, *content, party=self.SENDER)

    def _accept(
        self, phase: P, index: int, heard: Collection[int], members: Collection[int], party: str = "client"
    ) -> None:
        """Refuse a message that is not due in this phase from this party."""
        if self._phase != phase:
            raise refuse(
                "step order", f"a message of phase {phase.name.lower()} came in phase {self._phase.name.lower()}"
            )
        if index not in members:
            raise refuse("membership", f"{party} {index} has no part in this phase")
        if index in heard:
            raise refuse("duplicate message", f"{party} {index} has sent one in this phase already")

    def _ends(self, phase: P, shortage: ProtocolError | None = None) -> bool:
        """End ``phase``, unless parties are missing; False if it was ended before."""
        if self._phase.name in ("FINISHED", "FAILED") or self._phase < phase:
            raise refuse("step order", f"the round stands at {self._phase.name.lower()}")
        if self._phase != phase:
            return False
        if shortage is not None:
            raise self._fail(shortage)
        self._phase = type(phase)(phase + 1)
        return True

    def _fail(self, error: ProtocolError) -> ProtocolError:
        """End the round for good, drop what was collected, and return the error to raise."""
        self._phase = type(self._phase)["FAILED"]
        self._drop()
        return error

    @abstractmethod
    def _drop(self) -> None:
        """Forget the sum and whatever could open it."""
