"""Pairwise masking: masks that cancel in the sum, opened by the survivors. The default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from flwr.app import RecordDict

from carefl_secure.errors import CohortError
from carefl_secure.federation.aggregation import base
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.secagg import PairwiseClient, PairwiseServer


class PairwisePrefetch(base.KeyPrefetch):
    """Advertisements are piggybacked on the survivors' signatures, shares on their answers."""

    def __init__(self, exchange: Exchange, header: base.Header, server: PairwiseServer) -> None:
        super().__init__(exchange, header)
        self.server = server
        self._sharing = False
        self._lost = 0
        self.index_of: dict[int, int] = {}
        self.sharers: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether enough would survive even if as many are lost in that round as in this one."""
        return not self._refused and len(self.sharers) - self._lost >= self.server.parameters.required_survivors

    def advertising(self, contents: Mapping[int, RecordDict], action: str, take: base.Take) -> None:
        """Ask as `Exchange.gather`, and everybody for an advertisement."""
        everyone = dict.fromkeys([*contents, *self._exchange.nodes()], pack(**self.header))
        self._ask(contents, action, take, everyone, "query.advertise_prefetch")

    def sharing(self, contents: Mapping[int, RecordDict], action: str, take: base.Take) -> None:
        """Ask as `Exchange.gather`, and whoever advertised for shares."""
        self._sharing = True
        book: dict[int, RecordDict] = {}
        if len(self.index_of) >= self.server.parameters.required_survivors:
            book = dict.fromkeys(self.index_of, pack(peers=self.server.advertisements()))
        self._ask(contents, action, take, book, "query.share_prefetch")

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
        self.server.advertised(index, fields.octets("message"))
        self.index_of[node] = index


class PairwiseServerSum(base.ServerSum):
    """The server of pairwise masking; ``header`` holds round, plan, and what else a client needs at first."""

    action = "train.masked"

    def __init__(self, this: base.ServerRound, header: base.Header, server: PairwiseServer) -> None:
        prefetched = this.prefetched if isinstance(this.prefetched, PairwisePrefetch) else None
        self._exchange = this.exchange
        self._header = header
        self._server = server if prefetched is None else prefetched.server
        self._model_hash = this.model_hash
        self._following = this.following if isinstance(this.following, PairwisePrefetch) else None
        self._answers = 0
        self._sharers = [] if prefetched is None else prefetched.sharers
        self._index_of: dict[int, int] = {}
        self._node_of: dict[int, int] = {}
        if prefetched is not None:
            for node, index in prefetched.index_of.items():
                self._introduce(node, index)

    def prepare(self, nodes: base.Nodes) -> dict[int, RecordDict]:
        """Exchange keys, unless they are prefetched; return each sharer's inbox."""
        server = self._server
        if not self._sharers:
            self._exchange_keys(nodes())
        server.bind(self._model_hash)
        header = {name: self._header[name] for name in ("round", "plan")}
        return {
            node: pack(**header, shares=server.inbox(self._index_of[node]))
            for node in self._sharers
            if node not in self._exchange.excluded
        }

    def _exchange_keys(self, nodes: Collection[int]) -> None:
        """Collect advertisements and shares."""
        exchange, server = self._exchange, self._server
        exchange.gather(dict.fromkeys(nodes, pack(**self._header)), "query.advertise", self._advertised)
        listed = server.advertisements()
        book = {self._node_of[index]: pack(peers=listed) for index in listed}
        exchange.gather(book, "query.share", self._shared)
        if not self._sharers:
            raise CohortError("no client shared its keys; nothing was released, start a new round")

    def _advertised(self, node: int, reply: RecordDict) -> None:
        fields = Fields(reply, "index", "message")
        index = fields.integer("index")
        self._server.advertised(index, fields.octets("message"))  # whose signature proves the place
        self._introduce(node, index)

    def _shared(self, node: int, reply: RecordDict) -> None:
        self._server.shared(self._index_of[node], Fields(reply, maps=["shares"]).map("shares"))
        self._sharers.append(node)

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one upload."""
        self._server.uploaded(self._index_of[node], Fields(content, "upload").octets("upload"))

    def open(self) -> tuple[base.MaskedIntegers, tuple[int, ...]]:
        """Have the survivors agree on who they are and take the masks off."""
        server, following = self._server, self._following
        shared, survivors = server.survivors()

        ask = self._exchange.gather if following is None else following.advertising
        sets = {self._node_of[i]: pack(shared=shared, survivors=survivors) for i in survivors}
        ask(sets, "query.sign", base.handing(server.signed, self._index_of, "signature"))
        signatures = server.signatures()

        ask = self._exchange.gather if following is None else following.sharing
        proofs = {self._node_of[index]: pack(signatures=signatures) for index in signatures}
        ask(proofs, "query.unmask", self._answered)
        if following is not None:
            following.settle(len(shared) - self._answers)
        total = server.finish()
        self.contradictions = {(f"client {i}", f"client {j}") for i, j in server.false_shares}
        return total, tuple(survivors)

    def _answered(self, node: int, reply: RecordDict) -> None:
        self._server.answered(self._index_of[node], Fields(reply, "answer").octets("answer"))
        self._answers += 1

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of every client, by node."""
        return self._index_of

    def _introduce(self, node: int, index: int) -> None:
        """Note for which place in the roster a node has signed."""
        self._index_of[node], self._node_of[index] = index, node


class Pairwise(base.AggregationProtocol):
    """Pairwise masking among the clients, with no other party."""

    name: ClassVar[str] = "pairwise"
    prefetches: ClassVar[bool] = True

    def client(self, setup: base.ClientSetup, number: int, key: bytes) -> base.ClientSum:
        """Return a client's part in a round."""
        parameters = setup.cohort.round_parameters(setup.plan, number)
        return PairwiseClient(parameters, setup.index, setup.identity, setup.keys)

    def restore(self, setup: base.ClientSetup, saved: bytes, number: int, model_hash: bytes) -> base.ClientSum:
        """Go on from a saved part."""
        parameters = setup.cohort.round_parameters(setup.plan, number, model_hash)
        return PairwiseClient.restore(saved, setup.identity, parameters, setup.keys)

    def server(self, setup: base.ServerSetup, this: base.ServerRound) -> base.ServerSum:
        """Return the server's part in a round."""
        server = PairwiseServer(setup.cohort.round_parameters(setup.plan, this.number))
        return PairwiseServerSum(this, setup.header(this.number), server)

    def prefetch(self, setup: base.ServerSetup, exchange: Exchange, number: int) -> base.KeyPrefetch | None:
        """Return what exchanges the keys of a later round."""
        server = PairwiseServer(setup.cohort.round_parameters(setup.plan, number))
        return PairwisePrefetch(exchange, setup.header(number), server)
