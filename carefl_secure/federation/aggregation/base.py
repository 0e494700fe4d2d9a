"""The seam: what one round of any way of summing looks like to a client and to the server.

`ClientSession` delegates to a `ClientSum`, `SecureSumStrategy` to a `ServerSum`. What is the same
in every mode (the ledger first, sampling, clipping, noise, the step of the optimiser) stays on
their side; keys, masks, envelopes and ciphertexts stay on this side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError

__all__ = ["ClientSum", "MaskedIntegers", "Nodes", "ServerSum"]

MaskedIntegers = NDArray[np.unsignedinteger[Any]]
Nodes = Callable[[], Collection[int]]
"""Waits for the nodes and says which are there."""


class ClientSum(ABC):
    """One client's part in the sum of one round: bytes in, bytes out.

    Every mode has `mask`, the step that carries the vector. The others belong to those modes that
    override them and are refused elsewhere.

    Attributes
    ----------
    rotation : bytes
        Public key of the round's rotation, the same in every mode.
    """

    rotation: bytes

    @abstractmethod
    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes]) -> bytes:
        """Return the upload that hides a vector, once.

        Parameters
        ----------
        vector : ndarray of uint16 or uint32, shape [padded]
            Encoded, noised and wrapped.
        messages : mapping of int to bytes
            What the helpers or the other clients said before, by their index.
        """

    @abstractmethod
    def save(self) -> bytes:
        """Return what the next step needs, secrets sealed."""

    @abstractmethod
    def close(self) -> None:
        """Erase every secret."""

    def bind(self, model_hash: bytes) -> None:
        """Say which model keys made ahead are for, once, between `share` and `mask`."""
        raise _not_here("bind")

    def advertise(self) -> bytes:
        """Return the first message, where there is one before the vector."""
        raise _not_here("advertise")

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the round's secrets among the peers."""
        raise _not_here("share")

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who is in the sum."""
        raise _not_here("sign")

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Give what takes the masks off the sum."""
        raise _not_here("unmask")


class ServerSum(ABC):
    """The server's part in the sum of one round.

    The strategy calls `prepare`, pays, sends what came of it with the adapter as one training
    message of type ``action``, hands every reply to `collect`, and then calls `open`.

    Attributes
    ----------
    rotation : bytes
        Public key of the round's rotation.
    action : str
        Flower's type of the training message.
    """

    rotation: bytes
    action: str

    @abstractmethod
    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Run every phase before the vectors.

        Parameters
        ----------
        nodes : callable() -> collection of int
            Waits for Flower's nodes and gives the numbers of those that are there; not called where
            the parties are known.

        Returns
        -------
        dict of int to RecordDict
            What to send each client beside the adapter, by node.

        Raises
        ------
        CohortError
            When too few clients or helpers are there; nothing has been asked of any record yet.
        """

    @abstractmethod
    def collect(self, node: int, content: RecordDict) -> None:
        """Check and add one upload."""

    @abstractmethod
    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Run every phase after the vectors.

        Returns
        -------
        tuple of ndarray and tuple of int
            The sum, shape [padded], and the clients that are in it.

        Raises
        ------
        CohortError
            When too few clients or helpers remained; nothing was opened.
        """

    @abstractmethod
    def clients(self) -> Collection[int]:
        """Return the nodes of the clients heard so far."""


def _not_here(step: str) -> ProtocolError:
    return ProtocolError(
        f"step {step} is no part of this way of summing; client and server run different modes: "
        "compare federation.aggregation"
    )
