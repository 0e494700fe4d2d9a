"""Summing among peers: masks that cancel, opened by the survivors. The default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.federation.cohort import rotation_key
from carefl_secure.federation.exchange import Exchange
from carefl_secure.federation.messages import Fields, pack
from carefl_secure.federation.summing import ClientSum, ServerSum, Words
from carefl_secure.secagg import PeerClient, PeerServer, RoundParameters

__all__ = ["PeerClientSum", "PeerServerSum"]


class PeerClientSum(ClientSum):
    """A client among peers.

    Parameters
    ----------
    client : PeerClient
        The state machine of this round.
    parameters : RoundParameters
        What it was made for.
    """

    def __init__(self, client: PeerClient, parameters: RoundParameters) -> None:
        self.client = client
        self.rotation = rotation_key(parameters)

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


class PeerServerSum(ServerSum):
    """The server of a sum among peers: two phases before the vectors, two after.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    hello : RecordDict
        Round, model and plan: what every party is told first.
    server : PeerServer
        The state machine of this round.
    parameters : RoundParameters
        What it was made for.
    """

    action = "train.masked"

    def __init__(
        self,
        exchange: Exchange,
        hello: RecordDict,
        server: PeerServer,
        parameters: RoundParameters,
    ) -> None:
        self._exchange = exchange
        self._hello = hello
        self._server = server
        self.rotation = rotation_key(parameters)
        self._index_of: dict[int, int] = {}
        self._node_of: dict[int, int] = {}

    def prepare(self, nodes: Collection[int]) -> dict[int, RecordDict]:
        """Collect advertisements and shares; return each sharer's inbox."""
        exchange, server = self._exchange, self._server
        for node, reply in exchange.ask(dict.fromkeys(nodes, self._hello), "query.advertise"):
            fields = Fields(reply, "index", "message")
            index = self._introduce(node, fields.integer("index"))
            server.advertised(index, fields.octets("message"))
        peers = server.advertisements()

        book = {self._node_of[index]: pack(peers=peers) for index in peers}
        sharers = []
        for node, reply in exchange.ask(book, "query.share"):
            server.shared(self._index_of[node], Fields(reply, maps=["shares"]).map("shares"))
            sharers.append(node)
        if not sharers:
            raise CohortError("no client shared its keys; nothing was released, start a new round")
        return {node: pack(shares=server.inbox(self._index_of[node])) for node in sharers}

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector."""
        upload = Fields(content, "upload").octets("upload")
        self._server.uploaded(self._index_of[node], upload)

    def open(self) -> tuple[Words, tuple[int, ...]]:
        """Have the survivors agree on who they are and take the masks off."""
        exchange, server = self._exchange, self._server
        shared, survivors = server.survivors()

        sets = {self._node_of[i]: pack(shared=shared, survivors=survivors) for i in survivors}
        for node, reply in exchange.ask(sets, "query.sign"):
            signature = Fields(reply, "signature").octets("signature")
            server.signed(self._index_of[node], signature)
        signatures = server.signatures()

        proofs = {self._node_of[index]: pack(signatures=signatures) for index in signatures}
        for node, reply in exchange.ask(proofs, "query.unmask"):
            server.answered(self._index_of[node], Fields(reply, "answer").octets("answer"))
        return server.finish(), tuple(survivors)

    def clients(self) -> Collection[int]:
        """Return the nodes that advertised."""
        return self._index_of.keys()

    def _introduce(self, node: int, index: int) -> int:
        """Note which place in the roster a node speaks for; its signature proves it later."""
        if index in self._node_of:
            raise ProtocolError(f"two nodes claim to be client {index}; check the partition ids")
        self._index_of[node], self._node_of[index] = index, node
        return index
