"""Pairwise masking: masks that cancel in the sum, opened by the survivors. The default."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.federation.aggregation.base import (
    AggregationProtocol,
    ClientSetup,
    ClientSum,
    MaskedIntegers,
    Nodes,
    ServerSetup,
    ServerSum,
)
from carefl_secure.federation.aggregation.prefetch import Header, KeyPrefetch
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.secagg import PairwiseClient, PairwiseServer

__all__ = ["Pairwise", "PairwiseClientSum", "PairwisePrefetch", "PairwiseServerSum"]


class PairwiseClientSum(ClientSum):
    """A client of pairwise masking."""

    def __init__(self, client: PairwiseClient) -> None:
        self.client = client

    def advertise(self) -> bytes:
        """Return fresh public keys, signed."""
        return self.client.advertise()

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split this round's secrets among the clients that advertised."""
        return self.client.share(advertisements)

    def bind(self, model_hash: bytes) -> None:
        """Bind the keys to the model of the round."""
        self.client.bind(model_hash)

    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Open the other clients' shares for this one."""
        self.client.receive(messages)

    def mask(self, vector: NDArray[Any]) -> bytes:
        """Mask the vector."""
        return self.client.mask(vector)

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


class PairwisePrefetch(KeyPrefetch):
    """Advertisements are piggybacked on the survivors' signatures, shares on their answers."""

    def __init__(self, exchange: Exchange, header: Header, server: PairwiseServer) -> None:
        super().__init__(exchange, header)
        self.server = server
        self._sharing = False
        self._lost = 0
        self.index_of: dict[int, int] = {}
        self.sharers: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether enough would survive even if as many are lost in that round as in this one."""
        floor = self.server.parameters.floor
        return not self._refused and len(self.sharers) - self._lost >= floor

    def advertising(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask as `Exchange.ask`, and everybody for an advertisement."""
        everyone = dict.fromkeys([*contents, *self._exchange.nodes()], pack(**self.header))
        yield from self._ask(contents, action, everyone, "query.advertise_prefetch")

    def sharing(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask as `Exchange.ask`, and whoever advertised for shares."""
        self._sharing = True
        book: dict[int, RecordDict] = {}
        if len(self.index_of) >= self.server.parameters.floor:
            book = dict.fromkeys(self.index_of, pack(peers=self.server.advertisements()))
        yield from self._ask(contents, action, book, "query.share_prefetch")

    def settle(self, lost: int) -> None:
        """Note how many clients were lost in the round that is over."""
        self._lost = lost

    def _observe(self, node: int, record: RecordDict) -> None:
        if self._sharing:
            self.server.shared(self.index_of[node], Fields(record, maps=["shares"]).map("shares"))
            self.sharers.append(node)
            return
        fields = Fields(record, "index", "message")
        index = fields.integer("index")
        if index in self.index_of.values():
            raise ProtocolError(f"two nodes claim to be client {index}; check the partition ids")
        self.server.advertised(index, fields.octets("message"))
        self.index_of[node] = index


class PairwiseServerSum(ServerSum):
    """The server of pairwise masking: two phases before the vectors, two after.

    ``header`` holds round, plan, and whatever else a client needs before it advertises.
    """

    action = "train.masked"

    def __init__(
        self,
        exchange: Exchange,
        header: Header,
        server: PairwiseServer,
        model_hash: bytes,
        prefetched: PairwisePrefetch | None = None,
        following: PairwisePrefetch | None = None,
    ) -> None:
        self._exchange = exchange
        self._header = header
        self._server = server if prefetched is None else prefetched.server
        self._model_hash = model_hash
        self._following = following
        self._sharers = [] if prefetched is None else prefetched.sharers
        self._index_of: dict[int, int] = {}
        self._node_of: dict[int, int] = {}
        if prefetched is not None:
            for node, index in prefetched.index_of.items():
                self._introduce(node, index)

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Exchange keys, unless they are prefetched; return each sharer's inbox."""
        server = self._server
        if not self._sharers:
            self._exchange_keys(nodes())
        server.bind(self._model_hash)
        header = {name: self._header[name] for name in ("round", "plan")}
        return {
            node: pack(**header, shares=server.inbox(self._index_of[node]))
            for node in self._sharers
        }

    def _exchange_keys(self, nodes: Collection[int]) -> None:
        """Collect advertisements and shares."""
        exchange, server = self._exchange, self._server
        hello = dict.fromkeys(nodes, pack(**self._header))
        for node, reply in exchange.ask(hello, "query.advertise"):
            fields = Fields(reply, "index", "message")
            index = fields.integer("index")
            self._introduce(node, index)
            server.advertised(index, fields.octets("message"))
        peers = server.advertisements()
        book = {self._node_of[index]: pack(peers=peers) for index in peers}
        for node, reply in exchange.ask(book, "query.share"):
            server.shared(self._index_of[node], Fields(reply, maps=["shares"]).map("shares"))
            self._sharers.append(node)
        if not self._sharers:
            raise CohortError("no client shared its keys; nothing was released, start a new round")

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one upload."""
        upload = Fields(content, "upload").octets("upload")
        self._server.uploaded(self._index_of[node], upload)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the survivors agree on who they are and take the masks off."""
        server, following = self._server, self._following
        shared, survivors = server.survivors()

        ask = self._exchange.ask if following is None else following.advertising
        sets = {self._node_of[i]: pack(shared=shared, survivors=survivors) for i in survivors}
        for node, reply in ask(sets, "query.sign"):
            signature = Fields(reply, "signature").octets("signature")
            server.signed(self._index_of[node], signature)
        signatures = server.signatures()

        ask = self._exchange.ask if following is None else following.sharing
        proofs = {self._node_of[index]: pack(signatures=signatures) for index in signatures}
        answers = 0
        for node, reply in ask(proofs, "query.unmask"):
            server.answered(self._index_of[node], Fields(reply, "answer").octets("answer"))
            answers += 1
        if following is not None:
            following.settle(len(shared) - answers)
        return server.finish(), tuple(survivors)

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of every client, by node."""
        return self._index_of

    def _introduce(self, node: int, index: int) -> None:
        """Note which place in the roster a node speaks for; its signature proves it later."""
        if index in self._node_of:
            raise ProtocolError(f"two nodes claim to be client {index}; check the partition ids")
        self._index_of[node], self._node_of[index] = index, node


class Pairwise(AggregationProtocol):
    """Pairwise masking among the clients, with no other party."""

    name: ClassVar[str] = "pairwise"
    prefetches: ClassVar[bool] = True

    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round."""
        parameters = setup.cohort.round_parameters(setup.plan, number)
        return PairwiseClientSum(
            PairwiseClient(parameters, setup.index, setup.identity, setup.keys)
        )

    def restore(
        self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes
    ) -> ClientSum:
        """Go on from a saved part."""
        parameters = setup.cohort.round_parameters(setup.plan, number, model_hash)
        return PairwiseClientSum(
            PairwiseClient.restore(saved, setup.identity, parameters, setup.keys)
        )

    def server(
        self,
        setup: ServerSetup,
        exchange: Exchange,
        number: int,
        model_hash: bytes,
        prefetched: KeyPrefetch | None,
        following: KeyPrefetch | None,
    ) -> ServerSum:
        """Return the server's part in a round."""
        server = PairwiseServer(setup.cohort.round_parameters(setup.plan, number))
        made = prefetched if isinstance(prefetched, PairwisePrefetch) else None
        later = following if isinstance(following, PairwisePrefetch) else None
        header = setup.header(number)
        return PairwiseServerSum(exchange, header, server, model_hash, made, later)

    def prefetch(self, setup: ServerSetup, exchange: Exchange, number: int) -> KeyPrefetch | None:
        """Return what exchanges the keys of a later round."""
        server = PairwiseServer(setup.cohort.round_parameters(setup.plan, number))
        return PairwisePrefetch(exchange, setup.header(number), server)
