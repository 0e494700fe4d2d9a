"""A whole round in one process: for tests, benchmarks and to see the order of the messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.messages import RoundParameters
from carefl_secure.secagg.pairwise.server import PairwiseServer

__all__ = ["Rehearsal"]


def _system(index: int) -> KeySource:
    return SystemKeySource()


class Rehearsal:
    """All clients and the server of one round, driven step by step.

    Each step lets every client that is still present answer, hands the messages to the server
    and keeps them; clients named in ``gone`` stop answering from that step on.

    Parameters
    ----------
    parameters
        What the round was agreed to be.
    identities
        The private halves of the roster, in order.
    keys
        The key source of each client; the operating system by default.
    """

    def __init__(
        self,
        parameters: RoundParameters,
        identities: Sequence[Ed25519PrivateKey],
        keys: Callable[[int], KeySource] = _system,
    ) -> None:
        self.parameters = parameters
        self.server = PairwiseServer(parameters)
        self.clients = {
            index: PairwiseClient(parameters, index, identity, keys(index))
            for index, identity in enumerate(identities)
        }
        self.present = set(self.clients)
        self.adverts: dict[int, bytes] = {}
        self.shares: dict[int, dict[int, bytes]] = {}
        self.uploads: dict[int, bytes] = {}
        self.consents: dict[int, bytes] = {}
        self.answers: dict[int, bytes] = {}

    def _answering(self, gone: Collection[int]) -> list[int]:
        self.present -= set(gone)
        return sorted(self.present)

    def advertise(self, gone: Collection[int] = ()) -> None:
        """Play step 0."""
        for index in self._answering(gone):
            self.adverts[index] = self.clients[index].advertise()
            self.server.advertised(index, self.adverts[index])

    def share(self, gone: Collection[int] = ()) -> None:
        """Play step 1."""
        listed = self.server.advertisements()
        for index in self._answering(gone):
            self.shares[index] = self.clients[index].share(listed)
            self.server.shared(index, self.shares[index])

    def bind(self, model_hash: bytes) -> None:
        """Tell everybody which model keys made ahead are for, between steps 1 and 2."""
        self.server.bind(model_hash)
        for index in sorted(self.shares):
            self.clients[index].bind(model_hash)

    def mask(self, vectors: Mapping[int, npt.NDArray[Any]], gone: Collection[int] = ()) -> None:
        """Play step 2."""
        inboxes = {index: self.server.inbox(index) for index in self.shares}
        if not inboxes:
            self.server.inbox(0)
        for index in self._answering(gone):
            self.uploads[index] = self.clients[index].mask(vectors[index], inboxes[index])
            self.server.uploaded(index, self.uploads[index])

    def sign(self, gone: Collection[int] = ()) -> None:
        """Play step 3."""
        shared, survivors = self.server.survivors()
        for index in self._answering(gone):
            self.consents[index] = self.clients[index].sign(shared, survivors)
            self.server.signed(index, self.consents[index])

    def unmask(self, gone: Collection[int] = ()) -> None:
        """Play step 4."""
        signatures = self.server.signatures()
        for index in self._answering(gone):
            self.answers[index] = self.clients[index].unmask(signatures)
            self.server.answered(index, self.answers[index])

    def finish(self) -> npt.NDArray[Any]:
        """Return the sum over ``server.survivors()``."""
        return self.server.finish()

    def run(self, vectors: Mapping[int, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Play a whole round without dropouts and return the sum."""
        self.advertise()
        self.share()
        self.mask(vectors)
        self.sign()
        self.unmask()
        return self.finish()
