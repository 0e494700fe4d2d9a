"""Aggregation with a committee: a client sends one message, the members open the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from flwr.app import RecordDict

from carefl_secure.errors import CohortError
from carefl_secure.federation.aggregation import base
from carefl_secure.federation.aggregation.committee_member import ACTIONS, MemberSession
from carefl_secure.federation.aggregation.upload_buffer import UploadBuffer
from carefl_secure.federation.transport.exchange import Directory, Exchange
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.secagg import CommitteeClient, CommitteeServer


class CommitteePrefetch(base.KeyPrefetch):
    """The members' keys are piggybacked on their answers."""

    def __init__(self, exchange: Exchange, header: base.Header, server: CommitteeServer, directory: Directory) -> None:
        super().__init__(exchange, header)
        self.server = server
        self._directory = directory
        self._announced: set[int] = set()

    @property
    def ready(self) -> bool:
        """Whether every member has announced."""
        return not self._refused and len(self._announced) == self.server.parameters.size

    def announcing(self, contents: Mapping[int, RecordDict], action: str, take: base.Take) -> None:
        """Ask as `Exchange.gather`, and every member for its key."""
        following = dict.fromkeys(self._directory.helpers(), pack(**self.header))
        self._ask(contents, action, take, following, "query.committee_announce_prefetch")

    def _observe(self, node: int, record: RecordDict) -> None:
        member = self._directory.helpers()[node]
        self.server.announced(member, Fields(record, "announcement").octets("announcement"))
        self._announced.add(member)


class CommitteeServerSum(base.ServerSum):
    """The server of a sum with a committee: one phase before the vectors, two after.

    Without dropout tolerance every member is needed in every phase, so that one honest member is
    enough; a lost member ends the round with nothing opened. With it, as many members may drop out
    once all have announced; two more phases, consent and recovery, make up for them. Uploads are
    kept in ``folder``, one round's at a time, until the members have opened envelopes.
    """

    action = "train.submit"

    def __init__(self, setup: base.ServerSetup, this: base.ServerRound, server: CommitteeServer) -> None:
        self._exchange = this.exchange
        self._header = setup.header(this.number)
        made = this.prefetched
        self._announced = isinstance(made, CommitteePrefetch)
        self._server = made.server if isinstance(made, CommitteePrefetch) else server
        self._model_hash = this.model_hash
        self._directory = setup.directory
        self._following = this.following if isinstance(this.following, CommitteePrefetch) else None
        self._index_of: dict[int, int] = {}
        self._buffer = UploadBuffer(setup.folder)
        self._failed: set[tuple[str, str]] = set()

    def prepare(self, nodes: base.Nodes) -> dict[int, RecordDict]:
        """Have every member announce its key, unless prefetched; return each invitation."""
        self._gather(nodes())
        if not self._announced:
            header = dict.fromkeys(self._directory.helpers(), pack(**self._header))
            take = base.handing(self._server.announced, self._directory.helpers(), "announcement")
            self._exchange.gather(header, "query.committee_announce", take)
        self._server.bind(self._model_hash)
        return dict.fromkeys(self._index_of, pack(**self._header, announcements=self._server.announcements()))

    def _gather(self, nodes: Collection[int]) -> None:
        """Learn who is there and check that they are enough."""
        self._directory.learn(self._exchange, nodes)
        self._index_of = self._directory.clients()
        present, needed = len(set(self._index_of.values())), self._server.parameters.min_survivors
        if present < needed:
            raise CohortError(
                f"{present} clients are there, at least {needed} are needed; nothing was released, "
                "start a new round with more clients"
            )

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector; keep the message on disk, as clients that members leave out are subtracted again."""
        index, upload = self._index_of[node], Fields(content, "upload").octets("upload")
        self._server.submitted(index, upload)
        self._buffer.keep(index, upload)

    def open(self) -> tuple[base.MaskedIntegers, tuple[int, ...]]:
        """Have the members settle the list of clients and take their masks off."""
        server, members = self._server, self._directory.helpers()
        order = {**self._header, "model": self._model_hash}
        announcements = server.announcements()
        listings = {
            node: pack(**order, announcements=announcements, listing=server.listing(member))
            for node, member in members.items()
        }
        self._exchange.gather(listings, "query.committee_open", self._opened)
        openings = server.openings()
        for index in server.left_out():
            server.withdraw(index, self._buffer.take(index))
        self._buffer.close()

        settled = {node: pack(openings=openings) for node in members if members[node] in openings}
        following = self._following
        ask = self._exchange.gather if following is None else following.announcing
        ask(settled, "query.committee_answer", base.handing(server.answered, members, "answer"))
        lost = server.lost()
        if lost:
            self._recover(members, lost)
        total = server.finish()
        self.contradictions = self._failed | {(f"committee member {m}", f"client {i}") for m, i in server.false_shares}
        return total, server.clients()

    def _opened(self, node: int, reply: RecordDict) -> None:
        member = self._directory.helpers()[node]
        failed = self._server.opened(member, Fields(reply, "opening").octets("opening"))
        self._failed |= {(f"committee member {member}", f"client {index}") for index in failed}

    def _recover(self, members: Mapping[int, int], lost: Collection[int]) -> None:
        """Have the members that are left agree on who is lost and give shares of their seeds."""
        exchange, server = self._exchange, self._server
        left = [node for node, member in members.items() if member not in lost]
        question = pack(lost=list(lost))
        exchange.gather(
            dict.fromkeys(left, question),
            "query.committee_consent",
            base.handing(server.consented, members, "consent"),
        )
        agreed = pack(consents=server.consents())
        exchange.gather(
            dict.fromkeys(left, agreed), "query.committee_recover", base.handing(server.recovered, members, "seeds")
        )

    def places(self) -> dict[int, str]:
        """Return the name of the party of every node."""
        members = self._directory.helpers().items()
        return super().places() | {node: f"committee member {place}" for node, place in members}

    def clients(self) -> Mapping[int, int]:
        """Return the place in the roster of every client, by node."""
        return self._index_of


class Committee(base.AggregationProtocol):
    """One message per client, opened by a committee of two to five members."""

    name: ClassVar[str] = "committee"
    prefetches: ClassVar[bool] = True
    helper_actions: ClassVar[Collection[str]] = ACTIONS

    def helpers(self, committee_members: int) -> int:
        """Return the size of the committee."""
        return committee_members

    def helper(self, setup: base.ClientSetup) -> base.Helper:
        """Return a member's session."""
        return MemberSession(setup)

    def client(self, setup: base.ClientSetup, number: int, key: bytes) -> base.ClientSum:
        """Return a client's part in a round."""
        parameters = setup.cohort.committee_parameters(setup.plan, number)
        return CommitteeClient(parameters, setup.index, setup.identity, setup.keys)

    def restore(self, setup: base.ClientSetup, saved: bytes, number: int, model_hash: bytes) -> base.ClientSum:
        """Go on from nothing: a client of a committee keeps no state between messages."""
        return self.client(setup, number, b"")

    def server(self, setup: base.ServerSetup, this: base.ServerRound) -> base.ServerSum:
        """Return the server's part in a round."""
        return CommitteeServerSum(
            setup, this, CommitteeServer(setup.cohort.committee_parameters(setup.plan, this.number))
        )

    def prefetch(self, setup: base.ServerSetup, exchange: Exchange, number: int) -> base.KeyPrefetch | None:
        """Return what exchanges the members' keys of a later round."""
        server = CommitteeServer(setup.cohort.committee_parameters(setup.plan, number))
        return CommitteePrefetch(exchange, setup.header(number), server, setup.directory)
