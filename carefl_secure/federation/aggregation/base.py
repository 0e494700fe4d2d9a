"""Interfaces of one round of any aggregation protocol, for a client, a helper and the server.

Ledger, sampling, clipping, noise and optimizer belong to the callers, `ClientSession` and
`SecureSumStrategy`; keys, masks, envelopes and ciphertexts belong here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, ProtocolError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import Party, is_dropout
from carefl_secure.federation.transport.exchange import ROLE, Directory, Exchange, role_message
from carefl_secure.federation.transport.messages import Fields, piggyback, piggybacked
from carefl_secure.noise import KeySource
from carefl_secure.secagg import ClientSum as ClientSum

Header = Mapping[str, int | bytes]
Take = Callable[[int, RecordDict], object]

MaskedIntegers = NDArray[np.unsignedinteger[Any]]
Nodes = Callable[[], Collection[int]]
"""Waits for the nodes and says which are there."""


def handing(take: Callable[[int, bytes], object], places: Mapping[int, int], name: str) -> Take:
    """Return what hands the one field of a reply to ``take``, with the place of its node."""
    return lambda node, reply: take(places[node], Fields(reply, name).octets(name))


class KeyPrefetch(ABC):
    """The key phases of the round that ``header`` names, run in the ``exchange`` of the round before it."""

    def __init__(self, exchange: Exchange, header: Header) -> None:
        self._exchange = exchange
        self._refused = False
        self.header = header

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the round can begin with the vectors; else its keys are exchanged in it."""

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        action: str,
        take: Take,
        following: Mapping[int, RecordDict],
        bare_action: str,
    ) -> None:
        """Send messages with those for the next round, whose refusal it meets again; ``take`` gets good replies."""
        exchange = self._exchange
        loaded = {
            node: piggyback(content, following[node]) if node in following else content
            for node, content in contents.items()
        }
        bare = {node: record for node, record in following.items() if node not in contents}

        def own(replies: Iterator[Message]) -> Iterator[Message]:
            for reply in replies:
                if reply.metadata.src_node_id in bare and reply.has_error() and not is_dropout(reply.error):
                    self._refused = True
                else:
                    yield reply

        def messages() -> Iterator[Message]:
            yield from exchange.address(loaded, action)
            yield from exchange.address(bare, bare_action)

        for reply in exchange.accept(own(iter(exchange.send(messages())))):
            node = reply.metadata.src_node_id
            record = reply.content if node in bare else piggybacked(reply.content)
            if node not in bare:
                with exchange.judging(node, action):
                    take(node, reply.content)
            if record is not None and node in following:
                with exchange.judging(node, bare_action):
                    self._observe(node, record)

    @abstractmethod
    def _observe(self, node: int, record: RecordDict) -> None:
        """Take in what a node sent for the next round."""


class ServerSum(ABC):
    """The server's part in the sum of one round.

    The strategy calls `prepare`, charges its ledger, trains by messages of type ``action``, whose replies go to
    `collect`, and calls `open`.
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

    contradictions: Collection[tuple[str, str]] = ()
    """Pairs of parties, by name, of which one sent something false that was corrected."""

    def places(self) -> dict[int, str]:
        """Return the name of the party of every node, such as "client 3"."""
        return {node: f"client {index}" for node, index in self.clients().items()}

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
    """What a client or helper brings to every round; ``index`` is its place among its kind."""

    plan: RunPlan
    cohort: Cohort
    index: int
    identity: Ed25519PrivateKey
    keys: KeySource


class Helper(ABC):
    """A helper for one run: it has no records, sees no client's vector and takes part in no round twice.

    Plan and cohort are its own copies. Raises ProtocolError when its key is not the one that the cohort names.
    """

    party: ClassVar[Party] = "helper"
    """What it is called in a refusal."""

    def __init__(self, setup: ClientSetup) -> None:
        if setup.cohort.helpers[setup.index] != setup.identity.public_key().public_bytes_raw():
            raise ProtocolError(
                f"helper {setup.index} does not hold the key that the cohort names for it; "
                "compare the cohort with the helper's key file"
            )
        self.index = setup.index
        self._setup = setup
        self._round = -1

    @abstractmethod
    def actions(self) -> Mapping[str, Callable[[RecordDict], RecordDict]]:
        """Return its steps, by Flower's type of the message that asks for one."""

    def answer(self, name: str, content: RecordDict) -> RecordDict:
        """Take one step; ProtocolError when the step is not this party's."""
        if name == ROLE:
            Fields(content, "ask")
            return role_message(self.index, helper=True)
        steps = self.actions()
        if name not in steps:
            raise ProtocolError(f"a {self.party} was asked for {name}, which it does not answer")
        return steps[name](content)

    def _check(self, number: int, plan_hash: bytes) -> None:
        if plan_hash != self._setup.plan.hash():
            raise ProtocolError("the server follows another privacy plan; compare the run plans")
        if number <= self._round:
            raise ProtocolError(f"round {number} comes after round {self._round}; a round is never repeated")

    @abstractmethod
    def close(self) -> None:
        """Erase the secrets of the round in progress, if there is one."""


@dataclass(frozen=True)
class ServerSetup:
    """What the server brings to every round; ``folder`` has room for one round's uploads."""

    plan: RunPlan
    cohort: Cohort
    directory: Directory
    folder: Path | None = None

    def header(self, number: int) -> dict[str, int | bytes]:
        """Return what names a round in a message: its number and the plan."""
        return {"round": number, "plan": self.plan.hash()}


@dataclass(frozen=True)
class ServerRound:
    """One round as the server begins it, with its prefetched keys, and what prefetches the following one's."""

    exchange: Exchange
    number: int
    model_hash: bytes
    prefetched: KeyPrefetch | None = None
    following: KeyPrefetch | None = None


class AggregationProtocol(ABC):
    """An aggregation protocol: the factory of every party's part in a sum.

    ``name`` is the value of ``federation.aggregation``; ``prefetches`` says whether the keys of a round can be
    exchanged during the round before; ``helper_actions`` are the types of message that its helpers answer.
    """

    name: ClassVar[str]
    prefetches: ClassVar[bool] = False
    helper_actions: ClassVar[Collection[str]] = ()

    def helpers(self, committee_members: int) -> int:
        """Return how many parties it needs besides clients and server."""
        return 0

    def helper(self, setup: ClientSetup) -> Helper:
        """Return the session of one helper; ConfigError when the protocol has no helpers."""
        raise ConfigError(f"federation.aggregation={self.name} has no helpers")

    @abstractmethod
    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round without a model yet; ``key`` is the key holder's message, if any."""

    @abstractmethod
    def restore(self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes) -> ClientSum:
        """Go on from what `ClientSum.save` gave for this round and model; ProtocolError where it was for another."""

    @abstractmethod
    def server(self, setup: ServerSetup, this: ServerRound) -> ServerSum:
        """Return the server's part in a round."""

    def prefetch(self, setup: ServerSetup, exchange: Exchange, number: int) -> KeyPrefetch | None:
        """Return what exchanges the keys of a later round, where the protocol can."""
        return None
