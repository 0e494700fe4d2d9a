"""A whole key-additive round in one process: for tests and benchmarks. EXPERIMENTAL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.secagg.key_additive.parameters import AdditiveParameters
from carefl_secure.secagg.key_additive.round import AdditiveClient, AdditiveServer
from carefl_secure.secagg.pairwise.rehearsal import Rehearsal

__all__ = ["AdditiveRehearsal"]


class AdditiveRehearsal(Rehearsal):
    """All clients and the server of one key-additive round, driven step by step.

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
        parameters: AdditiveParameters,
        identities: Sequence[Ed25519PrivateKey],
        keys: Callable[[int], KeySource] = lambda index: SystemKeySource(),
    ) -> None:
        super().__init__(parameters, identities, keys)
        self.server = AdditiveServer(parameters)
        self.clients = {
            index: AdditiveClient(parameters, index, identity, keys(index))
            for index, identity in enumerate(identities)
        }
