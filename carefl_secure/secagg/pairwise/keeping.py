"""What every step of a client stands on: its place, its state, and how that outlives a crash."""

from __future__ import annotations

from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.state import ClientState, Phase
from carefl_secure.secagg.primitives.checks import below_floor, refuse
from carefl_secure.secagg.primitives.crypto import check_place

__all__ = ["KeptClient"]


class KeptClient:
    """A client's place in a round and what it keeps between messages; see ``PairwiseClient``.

    Parameters
    ----------
    parameters
        What the round was agreed to be.
    index
        This client's place in the roster.
    identity
        The private half of ``parameters.roster[index]``.
    keys
        Where fresh keys come from.

    Raises
    ------
    ProtocolError
        If the identity does not belong to that place.
    """

    def __init__(
        self,
        parameters: RoundParameters,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        self._adopt(parameters, ClientState(index), identity, keys)

    def _adopt(
        self,
        parameters: RoundParameters,
        state: ClientState,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        check_place(identity, state.index, parameters.roster)
        self._parameters = parameters
        self._identity = identity
        self._keys = keys
        self._state = state

    @property
    def index(self) -> int:
        """Place of this client in the roster."""
        return self._state.index

    @property
    def phase(self) -> Phase:
        """The last step answered."""
        return self._state.phase

    @property
    def parameters(self) -> RoundParameters:
        """The agreement, as far as it is known."""
        return self._parameters

    @property
    def _context(self) -> bytes:
        return self._parameters.context()

    def save(self) -> bytes:
        """Return the state, encrypted and authenticated under the client's identity.

        Store it *before* sending the message that the last step returned. A crash then loses at
        most a message, which counts as a dropout; no step can be answered twice.
        """
        context = self._parameters.latest_context()
        return self._state.seal(self._identity, context, self._keys.key("saved state"))

    @classmethod
    def restore(
        cls,
        blob: bytes,
        identity: Ed25519PrivateKey,
        parameters: RoundParameters,
        keys: KeySource,
    ) -> Self:
        """Go on from a saved state in the same round.

        Only the newest blob may be restored; keep one file and replace it.

        Raises
        ------
        ProtocolError
            If the blob was changed, or belongs to another client or round.
        """
        client = cls.__new__(cls)
        state = ClientState.open(blob, identity, parameters.latest_context())
        client._adopt(parameters, state, identity, keys)
        return client

    def close(self) -> None:
        """Wipe every secret and refuse all further steps.

        Python may have left copies behind in freed memory; this overwrites those it can reach.
        """
        self._state.erase_all()
        self._state.phase = Phase.CLOSED

    def _due(self, last: Phase, step: str) -> None:
        phase = self._state.phase
        if phase == last:
            return
        if phase > last:
            raise refuse("step order", f"{step} was answered before, or the round is closed")
        raise refuse("step order", f"{step} is not due yet, the last step was {phase.name.lower()}")

    def _enough(self, present: int, phase: str) -> None:
        if present < self._parameters.floor:
            raise below_floor(phase, present, self._parameters.floor)
