"""Interfaces of one round of any aggregation protocol, for a client and for the server.

Ledger, sampling, clipping, noise and optimizer belong to the callers, `ClientSession` and
`SecureSumStrategy`; keys, masks, envelopes and ciphertexts belong here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, ProtocolError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.noise import KeySource

if TYPE_CHECKING:
    from carefl_secure.federation.aggregation.helper_session import Helper
    from carefl_secure.federation.aggregation.prefetch import KeyPrefetch

__all__ = [
    "AggregationProtocol",
    "ClientSetup",
    "ClientSum",
    "MaskedIntegers",
    "Nodes",
    "ServerSetup",
    "ServerSum",
]

MaskedIntegers = NDArray[np.unsignedinteger[Any]]
Nodes = Callable[[], Collection[int]]
"""Waits for the nodes and says which are there."""


class ClientSum(ABC):
    """One client's part in the sum of one round: bytes in, bytes out.

    The methods are called in this order. Every protocol has `bind`, `receive` and `mask`; other
    steps are refused unless a protocol overrides them.
    """

    def advertise(self) -> bytes:
        """Return the first message, where there is one before the vector."""
        raise _not_here("advertise")

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the round's secrets among the other clients."""
        raise _not_here("share")

    @abstractmethod
    def bind(self, model_hash: bytes) -> None:
        """Bind the keys to the model of the round, once."""

    @abstractmethod
    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Open and check what the helpers or the other clients sent, by their index."""

    @abstractmethod
    def mask(self, vector: NDArray[Any]) -> bytes:
        """Return the upload that hides a vector, once.

        ``vector`` is encoded, noised and wrapped: uint16 or uint32, shape [padded].
        """

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who is in the sum."""
        raise _not_here("sign")

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Give what takes the masks off the sum."""
        raise _not_here("unmask")

    @abstractmethod
    def save(self) -> bytes:
        """Return what the next step needs, secrets sealed."""

    @abstractmethod
    def close(self) -> None:
        """Erase every secret."""


class ServerSum(ABC):
    """The server's part in the sum of one round.

    The strategy calls `prepare`, charges its ledger, sends the results with the adapter in one
    training message of type ``action``, hands every reply to `collect`, and calls `open`.
    """

    action: str

    @abstractmethod
    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Run every phase before the vectors; return what to send each node with the adapter.

        ``nodes()`` waits for Flower's nodes and returns their numbers; it is not called where the
        parties are known. Raises CohortError when too few are there; no record has been read yet.
        """

    @abstractmethod
    def collect(self, node: int, content: RecordDict) -> None:
        """Check and add one upload."""

    @abstractmethod
    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Run every phase after the vectors; return the sum, shape [padded], and the clients in it.

        Raises CohortError when too few clients or helpers remained; nothing was opened then.
        """

    @abstractmethod
    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of the clients that have sent something, by node."""


@dataclass(frozen=True)
class ClientSetup:
    """What a client of a run brings to every round; ``index`` is its place in the roster."""

    plan: RunPlan
    cohort: Cohort
    index: int
    identity: Ed25519PrivateKey
    keys: KeySource


@dataclass(frozen=True)
class ServerSetup:
    """What the server of a run brings to every round.

    ``folder`` is on a disk with room for one round's uploads, for protocols that need them twice.
    """

    plan: RunPlan
    cohort: Cohort
    directory: Directory
    folder: Path | None = None

    def header(self, number: int) -> dict[str, int | bytes]:
        """Return what names a round in a message: its number and the plan."""
        return {"round": number, "plan": self.plan.hash()}


class AggregationProtocol(ABC):
    """An aggregation protocol: the factory of every party's part in a sum.

    ``name`` is the value of ``federation.aggregation``; ``prefetches`` says whether the keys of a
    round can be exchanged during the round before.
    """

    name: ClassVar[str]
    prefetches: ClassVar[bool] = False

    def helpers(self, committee_members: int) -> int:
        """Return how many parties it needs besides clients and server."""
        return 0

    def helper(
        self,
        index: int,
        identity: Ed25519PrivateKey,
        plan: RunPlan,
        cohort: Cohort,
        keys: KeySource,
    ) -> Helper:
        """Return the session of one helper; ConfigError when the protocol has no helpers."""
        raise ConfigError(f"federation.aggregation={self.name} has no helpers")

    @abstractmethod
    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round whose model is not bound yet.

        ``key`` is the key holder's message, in encrypted rounds.
        """

    @abstractmethod
    def restore(
        self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes
    ) -> ClientSum:
        """Go on from what `ClientSum.save` returned; ``model_hash`` is empty before `bind`.

        Raises ProtocolError when it was changed, or belongs to another client, round or model.
        """

    @abstractmethod
    def server(
        self,
        setup: ServerSetup,
        exchange: Exchange,
        number: int,
        model_hash: bytes,
        prefetched: KeyPrefetch | None,
        following: KeyPrefetch | None,
    ) -> ServerSum:
        """Return the server's part in a round; ``model_hash`` is the hash of the adapter.

        ``prefetched`` holds this round's keys, where they were exchanged during the round before;
        ``following`` exchanges the next round's keys during this one.
        """

    def prefetch(self, setup: ServerSetup, exchange: Exchange, number: int) -> KeyPrefetch | None:
        """Return what exchanges the keys of a later round, where the protocol can."""
        return None


def _not_here(step: str) -> ProtocolError:
    return ProtocolError(
        f"step {step} is no part of this aggregation protocol; client and server run different "
        "ones: compare federation.aggregation"
    )
