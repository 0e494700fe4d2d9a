"""Summing with a committee: a client sends one message and may leave, the members open the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import CohortError
from carefl_secure.federation.cohort import rotation_key
from carefl_secure.federation.directory import Directory
from carefl_secure.federation.exchange import Exchange
from carefl_secure.federation.messages import Fields, pack
from carefl_secure.federation.summing import ClientSum, ServerSum, Words
from carefl_secure.secagg import CommitteeClient, CommitteeParameters, CommitteeServer

__all__ = ["CommitteeClientSum", "CommitteeServerSum"]


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
    parameters : CommitteeParameters
        The agreement.
    directory : Directory
        Which node is which client and which member.
    """

    action = "train.submit"

    def __init__(
        self,
        exchange: Exchange,
        hello: RecordDict,
        invitation: Mapping[str, int | bytes],
        parameters: CommitteeParameters,
        directory: Directory,
    ) -> None:
        self._exchange = exchange
        self._hello = hello
        self._invitation = invitation
        self._parameters = parameters
        self._directory = directory
        self._server = CommitteeServer(parameters)
        self.rotation = rotation_key(parameters)
        self._index_of: dict[int, int] = {}
        self._submissions: dict[int, bytes] = {}

    def prepare(self, nodes: Collection[int]) -> dict[int, RecordDict]:
        """Have every member announce its key; return the invitation for each client."""
        self._directory.learn(self._exchange, nodes)
        self._index_of = self._directory.clients()
        present, floor = len(self._index_of), self._parameters.floor
        if present < floor:
            raise CohortError(
                f"{present} clients are there, at least {floor} are needed; nothing was released, "
                "start a new round with more clients"
            )
        members = self._directory.helpers()
        for node, reply in self._exchange.ask(
            dict.fromkeys(members, self._hello), "query.committee_announce"
        ):
            message = Fields(reply, "announcement").octets("announcement")
            self._server.announced(members[node], message)
        announcements = self._server.announcements()
        invitation = pack(**self._invitation, announcements=announcements)
        return dict.fromkeys(self._index_of, invitation)

    def collect(self, node: int, content: RecordDict) -> None:
        """Add one masked vector; the message is kept until the members have opened envelopes."""
        index, upload = self._index_of[node], Fields(content, "upload").octets("upload")
        self._server.submitted(index, upload)
        self._submissions[index] = upload

    def open(self) -> tuple[Words, tuple[int, ...]]:
        """Have the members settle the list of clients and take their masks off."""
        server, members = self._server, self._directory.helpers()
        announcements = server.announcements()
        listings = {
            node: pack(announcements=announcements, listing=server.listing(member))
            for node, member in members.items()
        }
        for node, reply in self._exchange.ask(listings, "query.committee_open"):
            server.opened(members[node], Fields(reply, "opening").octets("opening"))
        openings = server.openings()
        for index in server.left_out():
            server.withdraw(index, self._submissions[index])
        self._submissions.clear()

        settled = {node: pack(openings=openings) for node in members if members[node] in openings}
        for node, reply in self._exchange.ask(settled, "query.committee_answer"):
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

    def clients(self) -> Collection[int]:
        """Return the nodes of the clients."""
        return self._index_of.keys()
