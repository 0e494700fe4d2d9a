"""Summing with a committee: a client sends one message and may leave, the members open the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError
from carefl_secure.federation.aggregation.base import ClientSum, MaskedIntegers, Nodes, ServerSum
from carefl_secure.federation.aggregation.prefetch import CommitteeAhead
from carefl_secure.federation.aggregation.upload_buffer import UploadBuffer
from carefl_secure.federation.plan.cohort import rotation_key
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack, with_ride
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.secagg import CommitteeClient, CommitteeParameters, CommitteeServer

__all__ = ["AheadCommitteeServerSum", "CommitteeClientSum", "CommitteeServerSum"]


class CommitteeClientSum(ClientSum):
    """A client before a committee: `mask` is all it ever does.

    Parameters
    ----------
    client : CommitteeClient
        The state machine of this round.
    parameters : CommitteeParameters
        What it was made for.
    """

    def __init__(self, client: CommitteeClient, parameters: CommitteeParameters) -> None:
        self._client = client
        self.rotation = rotation_key(parameters)

    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes]) -> bytes:
        """Mask the vector; ``messages`` are the members' announcements."""
        return self._client.submit(vector, messages)

    def save(self) -> bytes:
        """Return nothing: no secret outlives the one message."""
        return b""

    def close(self) -> None:
        """Do nothing: no secret outlives the one message."""


class CommitteeServerSum(ServerSum):
    """The server of a sum with a committee: one phase before the vectors, two after.

    Without spares every member is needed in every phase, so that one honest member is enough; a
    lost one ends the round with nothing opened. With spares so many members may vanish once all
    have announced: two more phases, consent and recovery, make up for them.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    hello : RecordDict
        Round, model and plan: what every party is told first.
    invitation : mapping
        Round and plan, which a client is told together with the announcements.
    server : CommitteeServer
        The state machine of this round.
    directory : Directory
        Which node is which client and which member.
    folder : Path, optional
        Where uploads are kept until the members have opened envelopes, one round's at a time.
    ahead : CommitteeAhead, optional
        Makes the members' keys for the next round on the way of their answers.
    """

    action = "train.submit"

    def __init__(
        self,
        exchange: Exchange,
        hello: RecordDict,
        invitation: Mapping[str, int | bytes],
        server: CommitteeServer,
        directory: Directory,
        folder: Path | None = None,
        ahead: CommitteeAhead | None = None,
    ) -> None:
        self._exchange = exchange
        self._hello = hello
        self._invitation = invitation
        self._directory = directory
        self._server = server
        self._ahead = ahead
        self.rotation = rotation_key(server.parameters)
        self._index_of: dict[int, int] = {}
        self._spool = UploadBuffer(folder)

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Have every member announce its key; return the invitation for each client."""
        self._gather(nodes())
        members = self._directory.helpers()
        for node, reply in self._exchange.ask(
            dict.fromkeys(members, self._hello), "query.committee_announce"
        ):
            message = Fields(reply, "announcement").octets("announcement")
            self._server.announced(members[node], message)
        return dict.fromkeys(self._index_of, self._invite())

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

    def _invite(self) -> RecordDict:
        return pack(**self._invitation, announcements=self._server.announcements())

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector; the message waits on disk until envelopes have been opened.

        A client that the members leave out is taken off the sum again, and has long gone then.
        """
        index, upload = self._index_of[node], Fields(content, "upload").octets("upload")
        self._server.submitted(index, upload)
        self._spool.keep(index, upload)

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the members settle the list of clients and take their masks off."""
        server, members = self._server, self._directory.helpers()
        announcements = server.announcements()
        listings = {
            node: self._order(pack(announcements=announcements, listing=server.listing(member)))
            for node, member in members.items()
        }
        for node, reply in self._exchange.ask(listings, "query.committee_open"):
            server.opened(members[node], Fields(reply, "opening").octets("opening"))
        openings = server.openings()
        for index in server.left_out():
            server.withdraw(index, self._spool.take(index))
        self._spool.close()

        settled = {node: pack(openings=openings) for node in members if members[node] in openings}
        ask = self._exchange.ask if self._ahead is None else self._ahead.announcing
        for node, reply in ask(settled, "query.committee_answer"):
            server.answered(members[node], Fields(reply, "answer").octets("answer"))
        lost = server.lost()
        if lost:
            self._recover(members, lost)
        return server.finish(), server.clients()

    def _order(self, content: RecordDict) -> RecordDict:
        """Return what a member is sent to open envelopes."""
        return content

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

    def clients(self) -> Collection[int]:
        """Return the nodes of the clients."""
        return self._index_of.keys()


class AheadCommitteeServerSum(CommitteeServerSum):
    """The server of a sum with a committee whose keys were made on the way of the round before.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    made : CommitteeAhead
        The members' keys, not bound to a model yet.
    model_hash : bytes
        Hash of the adapter.
    directory, folder, ahead
        As in `CommitteeServerSum`.
    """

    def __init__(
        self,
        exchange: Exchange,
        made: CommitteeAhead,
        model_hash: bytes,
        directory: Directory,
        folder: Path | None = None,
        ahead: CommitteeAhead | None = None,
    ) -> None:
        made.server.bind(model_hash)
        hello = pack(**made.told, model=model_hash)
        super().__init__(exchange, hello, made.told, made.server, directory, folder, ahead)

    def prepare(self, nodes: Nodes) -> dict[int, RecordDict]:
        """Return the invitation for each client; the members have announced."""
        self._gather(nodes())
        invitation = with_ride(self._invite(), pack(**self._invitation))
        return dict.fromkeys(self._index_of, invitation)

    def _order(self, content: RecordDict) -> RecordDict:
        """Return what a member is sent, with the model that its key is for."""
        return with_ride(content, self._hello)
