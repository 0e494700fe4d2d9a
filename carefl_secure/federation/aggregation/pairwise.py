"""Summing among peers: masks that cancel, opened by the survivors. The default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.federation.aggregation.base import ClientSum, MaskedIntegers, Nodes, ServerSum
from carefl_secure.federation.aggregation.prefetch import PeersAhead
from carefl_secure.federation.plan.cohort import rotation_key
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack, with_ride
from carefl_secure.secagg import PairwiseClient, PairwiseServer

__all__ = ["AheadPairwiseServerSum", "PairwiseClientSum", "PairwiseServerSum"]


class PairwiseClientSum(ClientSum):
    """A client among peers.

    Parameters
    ----------
    client : PairwiseClient
        The state machine of this round; where its keys are made ahead, not bound to a model yet.
    """

    def __init__(self, client: PairwiseClient) -> None:
        self.client = client
        self.rotation = rotation_key(client.parameters)

    def bind(self, model_hash: bytes) -> None:
        """Say which model keys made ahead are for."""
        self.client.bind(model_hash)
        self.rotation = rotation_key(self.client.parameters)

    def advertise(self) -> bytes:
        """Return fresh public keys, signed."""
        return self.client.advertise()

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split this round's secrets among the peers that advertised."""
        return self.client.share(advertisements)

    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes]) -> bytes:
        """Mask the vector; ``messages`` are the peers' shares for this client."""
        return self.client.mask(vector, messages)

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Sign who shared and who survived."""
        return self.client.sign(shared, survivors)

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Answer the one request to unmask."""
        return self.client.unmask(signatures)

    def save(self) -> bytes:
        """Return the sealed state."""
        return self.client.save()

    def close(self) -> None:
        """Erase every secret."""
        self.client.close()


class PairwiseServerSum(ServerSum):
    """The server of a sum among peers: two phases before the vectors, two after.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    hello : RecordDict
        Round, model and plan: what every party is told first.
    server : PairwiseServer
        The state machine of this round.
    ahead : PeersAhead, optional
        Makes the keys of the next round on the way of the last two phases.
    """

    action = "train.masked"

    def __init__(
        self,
        exchange: Exchange,
        hello: RecordDict,
        server: PairwiseServer,
        ahead: PeersAhead | None = None,
    ) -> None:
        self._exchange = exchange
        self._hello = hello
        self._server = server
        self._ahead = ahead
        self.rotation = rotation_key(server.parameters)
        self._index_of: dict[int, int] = {}
        self._node_of: dict[int, int] = {}

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Collect advertisements and shares; return each sharer's inbox."""
        exchange, server = self._exchange, self._server
        for node, reply in exchange.ask(dict.fromkeys(nodes(), self._hello), "query.advertise"):
            fields = Fields(reply, "index", "message")
            index = fields.integer("index")
            self._introduce(node, index)
            server.advertised(index, fields.octets("message"))
        peers = server.advertisements()

        book = {self._node_of[index]: pack(peers=peers) for index in peers}
        sharers = []
        for node, reply in exchange.ask(book, "query.share"):
            server.shared(self._index_of[node], Fields(reply, maps=["shares"]).map("shares"))
            sharers.append(node)
        if not sharers:
            raise CohortError("no client shared its keys; nothing was released, start a new round")
        return self._inboxes(sharers)

    def _inboxes(self, sharers: Collection[int]) -> dict[int, RecordDict]:
        server = self._server
        return {node: pack(shares=server.inbox(self._index_of[node])) for node in sharers}

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector."""
        upload = Fields(content, "upload").octets("upload")
        self._server.uploaded(self._index_of[node], upload)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the survivors agree on who they are and take the masks off."""
        server, ahead = self._server, self._ahead
        shared, survivors = server.survivors()

        ask = self._exchange.ask if ahead is None else ahead.advertising
        sets = {self._node_of[i]: pack(shared=shared, survivors=survivors) for i in survivors}
        for node, reply in ask(sets, "query.sign"):
            signature = Fields(reply, "signature").octets("signature")
            server.signed(self._index_of[node], signature)
        signatures = server.signatures()

        ask = self._exchange.ask if ahead is None else ahead.sharing
        proofs = {self._node_of[index]: pack(signatures=signatures) for index in signatures}
        answers = 0
        for node, reply in ask(proofs, "query.unmask"):
            server.answered(self._index_of[node], Fields(reply, "answer").octets("answer"))
            answers += 1
        if ahead is not None:
            ahead.settle(len(shared) - answers)
        return server.finish(), tuple(survivors)

    def clients(self) -> Collection[int]:
        """Return the nodes that advertised."""
        return self._index_of.keys()

    def _introduce(self, node: int, index: int) -> None:
        """Note which place in the roster a node speaks for; its signature proves it later."""
        if index in self._node_of:
            raise ProtocolError(f"two nodes claim to be client {index}; check the partition ids")
        self._index_of[node], self._node_of[index] = index, node


class AheadPairwiseServerSum(PairwiseServerSum):
    """The server of a sum among peers whose keys were made on the way of the round before.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    made : PeersAhead
        The keys, not bound to a model yet.
    model_hash : bytes
        Hash of the adapter.
    ahead : PeersAhead, optional
        As in `PairwiseServerSum`.
    """

    def __init__(
        self,
        exchange: Exchange,
        made: PeersAhead,
        model_hash: bytes,
        ahead: PeersAhead | None = None,
    ) -> None:
        made.server.bind(model_hash)
        super().__init__(exchange, pack(**made.told), made.server, ahead)
        self._sharers = made.sharers
        for node, index in made.index_of.items():
            self._introduce(node, index)

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Return each sharer's inbox and which round's keys it belongs to; nobody is asked."""
        boxes = self._inboxes(self._sharers)
        return {node: with_ride(box, self._hello) for node, box in boxes.items()}
