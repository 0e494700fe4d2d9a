"""A client's place in a round, and how its state outlives a crash."""

from __future__ import annotations

from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.state import ClientState, Phase
from carefl_secure.secagg.primitives.checks import below_floor
from carefl_secure.secagg.primitives.crypto import check_place
from carefl_secure.secagg.primitives.phases import Participant

__all__ = ["KeptClient"]


class KeptClient(Participant[RoundParameters, Phase]):
    """What a client keeps between messages; an identity must belong to its place in the roster."""

    def __init__(
        self, parameters: RoundParameters, index: int, identity: Ed25519PrivateKey, keys: KeySource
    ) -> None:
        check_place(identity, index, parameters.roster)
        super().__init__(parameters, index, identity, keys)
        self._state = ClientState(index)

    @property
    def phase(self) -> Phase:
        """The last step answered."""
        return self._state.phase

    def save(self) -> bytes:
        """Return the state, encrypted and authenticated under the client's identity.

        Store it *before* sending the message that the last step returned. A crash then loses at
        most a message, which counts as a dropout; no step can be answered twice.
        """
        context = self._parameters.latest_context()
        return self._state.seal(self._identity, context, self._keys.key("saved state"))

    @classmethod
    def restore(
        cls, blob: bytes, identity: Ed25519PrivateKey, parameters: RoundParameters, keys: KeySource
    ) -> Self:
        """Go on from a saved state in the same round; refuse a blob changed or of another round.

        Only the newest blob may be restored; keep one file and replace it.
        """
        state = ClientState.open(blob, identity, parameters.latest_context())
        client = cls(parameters, state.index, identity, keys)
        client._state = state
        return client

    def close(self) -> None:
        """Wipe every secret and refuse all further steps.

        Python may have left copies behind in freed memory; this overwrites those it can reach.
        """
        self._state.erase_all()
        self._state.phase = Phase.CLOSED

    def _enough(self, present: int, phase: str) -> None:
        if present < self._parameters.floor:
            raise below_floor(phase, present, self._parameters.floor)
