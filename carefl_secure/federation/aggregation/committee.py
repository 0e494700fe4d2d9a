"""Aggregation with a committee: a client sends one message, the members open the sum."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError
from carefl_secure.federation.aggregation.base import (
    AggregationProtocol,
    ClientSetup,
    ClientSum,
    MaskedIntegers,
    Nodes,
    ServerSetup,
    ServerSum,
)
from carefl_secure.federation.aggregation.helper_session import Helper, MemberSession
from carefl_secure.federation.aggregation.prefetch import Header, KeyPrefetch
from carefl_secure.federation.aggregation.upload_buffer import UploadBuffer
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.noise import KeySource
from carefl_secure.secagg import CommitteeClient, CommitteeServer

__all__ = ["Committee", "CommitteeClientSum", "CommitteePrefetch", "CommitteeServerSum"]


class CommitteeClientSum(ClientSum):
    """A client of a committee: it sends a single message."""

    def __init__(self, client: CommitteeClient) -> None:
        self._client = client

    def bind(self, model_hash: bytes) -> None:
        """Bind the members' keys to the model of the round."""
        self._client.bind(model_hash)

    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Check the members' announcements."""
        self._client.receive(messages)

    def mask(self, vector: NDArray[Any]) -> bytes:
        """Mask the vector and seal the seeds of the masks to the members."""
        return self._client.submit(vector)

    def save(self) -> bytes:
        """Return nothing: no secret outlives the one message."""
        return b""

    def close(self) -> None:
        """Do nothing: no secret outlives the one message."""


class CommitteePrefetch(KeyPrefetch):
    """The members' keys are piggybacked on their answers."""

    def __init__(
        self, exchange: Exchange, header: Header, server: CommitteeServer, directory: Directory
    ) -> None:
        super().__init__(exchange, header)
        self.server = server
        self._directory = directory
        self._announced: set[int] = set()

    @property
    def ready(self) -> bool:
        """Whether every member has announced."""
        return not self._refused and len(self._announced) == self.server.parameters.size

    def announcing(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask as `Exchange.ask`, and every member for its key."""
        following = dict.fromkeys(self._directory.helpers(), pack(**self.header))
        yield from self._ask(contents, action, following, "query.committee_announce_prefetch")

    def _observe(self, node: int, record: RecordDict) -> None:
        member = self._directory.helpers()[node]
        self.server.announced(member, Fields(record, "announcement").octets("announcement"))
        self._announced.add(member)


class CommitteeServerSum(ServerSum):
    """The server of a sum with a committee: one phase before the vectors, two after.

    Without dropout tolerance every member is needed in every phase, so that one honest member is
    enough; a lost member ends the round with nothing opened. With it, as many members may drop out
    once all have announced; two more phases, consent and recovery, make up for them. Uploads are
    kept in ``folder``, one round's at a time, until the members have opened envelopes.
    """

    action = "train.submit"

    def __init__(
        self,
        exchange: Exchange,
        header: Header,
        server: CommitteeServer,
        model_hash: bytes,
        directory: Directory,
        folder: Path | None = None,
        prefetched: CommitteePrefetch | None = None,
        following: CommitteePrefetch | None = None,
    ) -> None:
        self._exchange = exchange
        self._header = header
        self._server = server if prefetched is None else prefetched.server
        self._announced = prefetched is not None
        self._model_hash = model_hash
        self._directory = directory
        self._following = following
        self._index_of: dict[int, int] = {}
        self._buffer = UploadBuffer(folder)

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Have every member announce its key, unless prefetched; return each invitation."""
        self._gather(nodes())
        members = self._directory.helpers()
        if not self._announced:
            hello = dict.fromkeys(members, pack(**self._header))
            for node, reply in self._exchange.ask(hello, "query.committee_announce"):
                message = Fields(reply, "announcement").octets("announcement")
                self._server.announced(members[node], message)
        self._server.bind(self._model_hash)
        invitation = pack(**self._header, announcements=self._server.announcements())
        return dict.fromkeys(self._index_of, invitation)

    def _gather(self, nodes: Collection[int]) -> None:
        """Learn who is there and check that they are enough."""
        self._directory.learn(self._exchange, nodes)
        self._index_of = self._directory.clients()
        present, floor = len(self._index_of), self._server.parameters.floor
        if present < floor:
            raise CohortError(
                f"{present} clients are there, at least {floor} are needed; nothing was released, "
                "start a new round with more clients"
            )

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector; keep the message on disk until envelopes have been opened.

        A client that the members leave out is subtracted from the sum again.
        """
        index, upload = self._index_of[node], Fields(content, "upload").octets("upload")
        self._server.submitted(index, upload)
        self._buffer.keep(index, upload)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the members settle the list of clients and take their masks off."""
        server, members = self._server, self._directory.helpers()
        order = {**self._header, "model": self._model_hash}
        announcements = server.announcements()
        listings = {
            node: pack(**order, announcements=announcements, listing=server.listing(member))
            for node, member in members.items()
        }
        for node, reply in self._exchange.ask(listings, "query.committee_open"):
            server.opened(members[node], Fields(reply, "opening").octets("opening"))
        openings = server.openings()
        for index in server.left_out():
            server.withdraw(index, self._buffer.take(index))
        self._buffer.close()

        settled = {node: pack(openings=openings) for node in members if members[node] in openings}
        following = self._following
        ask = self._exchange.ask if following is None else following.announcing
        for node, reply in ask(settled, "query.committee_answer"):
            server.answered(members[node], Fields(reply, "answer").octets("answer"))
        lost = server.lost()
        if lost:
            self._recover(members, lost)
        return server.finish(), server.clients()

    def _recover(self, members: Mapping[int, int], lost: Collection[int]) -> None:
        """Have the members that are left agree on who is lost and give shares of their seeds."""
        exchange, server = self._exchange, self._server
        left = [node for node, member in members.items() if member not in lost]
        question = pack(lost=list(lost))
        for node, reply in exchange.ask(dict.fromkeys(left, question), "query.committee_consent"):
            server.consented(members[node], Fields(reply, "consent").octets("consent"))
        agreed = pack(consents=server.consents())
        for node, reply in exchange.ask(dict.fromkeys(left, agreed), "query.committee_recover"):
            server.recovered(members[node], Fields(reply, "seeds").octets("seeds"))

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of every client, by node."""
        return self._index_of


class Committee(AggregationProtocol):
    """One message per client, opened by a committee of two to five members."""

    name: ClassVar[str] = "committee"
    prefetches: ClassVar[bool] = True

    def helpers(self, committee_members: int) -> int:
        """Return the size of the committee."""
        return committee_members

    def helper(
        self,
        index: int,
        identity: Ed25519PrivateKey,
        plan: RunPlan,
        cohort: Cohort,
        keys: KeySource,
    ) -> Helper:
        """Return a member's session."""
        return MemberSession(index, identity, plan, cohort, keys)

    def client(self, setup: ClientSetup, number: int, key: bytes) -> ClientSum:
        """Return a client's part in a round."""
        parameters = setup.cohort.committee_parameters(setup.plan, number)
        return CommitteeClientSum(
            CommitteeClient(parameters, setup.index, setup.identity, setup.keys)
        )

    def restore(
        self, setup: ClientSetup, saved: bytes, number: int, model_hash: bytes
    ) -> ClientSum:
        """Go on from nothing: a client of a committee keeps no state between messages."""
        return self.client(setup, number, b"")

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
        return CommitteeServerSum(
            exchange,
            setup.header(number),
            CommitteeServer(setup.cohort.committee_parameters(setup.plan, number)),
            model_hash,
            setup.directory,
            setup.folder,
            prefetched if isinstance(prefetched, CommitteePrefetch) else None,
            following if isinstance(following, CommitteePrefetch) else None,
        )

    def prefetch(self, setup: ServerSetup, exchange: Exchange, number: int) -> KeyPrefetch | None:
        """Return what exchanges the members' keys of a later round."""
        server = CommitteeServer(setup.cohort.committee_parameters(setup.plan, number))
        return CommitteePrefetch(exchange, setup.header(number), server, setup.directory)
