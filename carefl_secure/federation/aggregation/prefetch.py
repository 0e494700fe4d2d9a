"""The server's side of keys made ahead: what rides on the messages of a round for the next one.

A ride is a record beside the message's own. Whoever gets no message in an exchange, because it
dropped out of the round, is asked for the ride alone in the same exchange, so that it is back in
the next round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.transport.error_codes import is_dropout
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, pack, ride_of, with_ride
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.secagg import CommitteeServer, PairwiseServer

__all__ = ["CommitteeAhead", "KeysAhead", "PeersAhead"]

Told = Mapping[str, int | bytes]


class KeysAhead(ABC):
    """The key phases of a round, while the one before it goes on.

    Parameters
    ----------
    exchange : Exchange
        The wire of the round that is going on.
    told : mapping
        Number of the round that the keys are for, and the plan.
    """

    def __init__(self, exchange: Exchange, told: Told) -> None:
        self._exchange = exchange
        self._refused = False
        self.told = told

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the round can begin with the vectors; else its keys are made in it."""

    def _ride(
        self,
        contents: Mapping[int, RecordDict],
        action: str,
        rides: Mapping[int, RecordDict],
        bare_action: str,
    ) -> Iterator[tuple[int, RecordDict]]:
        """Send messages with their rides, and rides alone; yield the good replies to messages.

        A node that refuses a ride alone takes nothing from the round that is going on: the next one
        makes its keys anew, and the refusal is met there.
        """
        exchange = self._exchange
        loaded = {
            node: with_ride(content, rides[node]) if node in rides else content
            for node, content in contents.items()
        }
        bare = {node: ride for node, ride in rides.items() if node not in contents}

        def own(replies: Iterator[Message]) -> Iterator[Message]:
            for reply in replies:
                alone = reply.metadata.src_node_id in bare
                if alone and reply.has_error() and not is_dropout(reply.error):
                    self._refused = True
                else:
                    yield reply

        def messages() -> Iterator[Message]:
            yield from exchange.address(loaded, action)
            yield from exchange.address(bare, bare_action)

        for node, reply in exchange.accept(own(iter(exchange.send(messages())))):
            ride = reply if node in bare else ride_of(reply)
            if ride is not None and node in rides:
                self._heard(node, ride)
            if node not in bare:
                yield node, reply

    @abstractmethod
    def _heard(self, node: int, ride: RecordDict) -> None:
        """Take in what rode on a reply."""


class PeersAhead(KeysAhead):
    """Advertisements ride on the survivors' signatures, shares on their answers.

    Parameters
    ----------
    exchange, told
        As in `KeysAhead`.
    server : PairwiseServer
        The state machine of the round that the keys are for.
    """

    def __init__(self, exchange: Exchange, told: Told, server: PairwiseServer) -> None:
        super().__init__(exchange, told)
        self.server = server
        self._sharing = False
        self._lost = 0
        self.index_of: dict[int, int] = {}
        self.sharers: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether the floor holds even if as many are lost in that round as in this one."""
        floor = self.server.parameters.floor
        return not self._refused and len(self.sharers) - self._lost >= floor

    def advertising(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask as `Exchange.ask`, and everybody for an advertisement."""
        hello = pack(**self.told)
        everyone = dict.fromkeys([*contents, *self._exchange.nodes()], hello)
        yield from self._ride(contents, action, everyone, "query.advertise_ahead")

    def sharing(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Ask as `Exchange.ask`, and whoever advertised for shares."""
        self._sharing = True
        book: dict[int, RecordDict] = {}
        if len(self.index_of) >= self.server.parameters.floor:
            book = dict.fromkeys(self.index_of, pack(peers=self.server.advertisements()))
        yield from self._ride(contents, action, book, "query.share_ahead")

    def settle(self, lost: int) -> None:
        """Note how many clients were lost in the round that is over."""
        self._lost = lost

    def _heard(self, node: int, ride: RecordDict) -> None:
        if self._sharing:
            self.server.shared(self.index_of[node], Fields(ride, maps=["shares"]).map("shares"))
            self.sharers.append(node)
            return
        fields = Fields(ride, "index", "message")
        index = fields.integer("index")
        if index in self.index_of.values():
            raise ProtocolError(f"two nodes claim to be client {index}; check the partition ids")
        self.server.advertised(index, fields.octets("message"))
        self.index_of[node] = index


class CommitteeAhead(KeysAhead):
    """The members' keys ride on their answers.

    Parameters
    ----------
    exchange, told
        As in `KeysAhead`.
    server : CommitteeServer
        The state machine of the round that the keys are for.
    directory : Directory
        Which node is which member.
    """

    def __init__(
        self, exchange: Exchange, told: Told, server: CommitteeServer, directory: Directory
    ) -> None:
        super().__init__(exchange, told)
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
        rides = dict.fromkeys(self._directory.helpers(), pack(**self.told))
        yield from self._ride(contents, action, rides, "query.committee_announce_ahead")

    def _heard(self, node: int, ride: RecordDict) -> None:
        member = self._directory.helpers()[node]
        self.server.announced(member, Fields(ride, "announcement").octets("announcement"))
        self._announced.add(member)
