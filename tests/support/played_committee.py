"""A whole committee round in one process: for tests, benchmarks and to see the order of things."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.secagg.committee.client import CommitteeClient
from carefl_secure.secagg.committee.member import CommitteeMember
from carefl_secure.secagg.committee.messages import CommitteeParameters
from carefl_secure.secagg.committee.server import CommitteeServer

__all__ = ["CommitteeRehearsal"]


def _system(name: str) -> KeySource:
    return SystemKeySource()


class CommitteeRehearsal:
    """All clients, members and the server of one round, driven step by step.

    Each step lets everyone named, or everyone still present, answer; messages are kept. Members
    in ``gone`` stop answering from that step on.

    Parameters
    ----------
    parameters
        What the round was agreed to be.
    clients, members
        The private halves of the roster and of the committee, in order.
    keys
        The key source of each party by name: ``client 3``, ``member 0``.
    """

    def __init__(
        self,
        parameters: CommitteeParameters,
        clients: Sequence[Ed25519PrivateKey],
        members: Sequence[Ed25519PrivateKey],
        keys: Callable[[str], KeySource] = _system,
    ) -> None:
        self.parameters = parameters
        self.server = CommitteeServer(parameters)
        self.clients = {
            index: CommitteeClient(parameters, index, identity, keys(f"client {index}"))
            for index, identity in enumerate(clients)
        }
        self.members = {
            index: CommitteeMember(parameters, index, identity, keys(f"member {index}"))
            for index, identity in enumerate(members)
        }
        self.present = set(self.members)
        self.announcements: dict[int, bytes] = {}
        self.submissions: dict[int, bytes] = {}
        self.openings: dict[int, bytes] = {}
        self.answers: dict[int, bytes] = {}
        self.consents: dict[int, bytes] = {}
        self.shares: dict[int, bytes] = {}

    def _answering(self, gone: Collection[int]) -> list[int]:
        self.present -= set(gone)
        return sorted(self.present)

    def announce(self) -> None:
        """Let every member announce its key."""
        for index, member in self.members.items():
            self.announcements[index] = member.announce()
            self.server.announced(index, self.announcements[index])
        self.server.announcements()

    def bind(self, model_hash: bytes) -> None:
        """Tell everybody which model keys made ahead are for, before the clients submit."""
        self.server.bind(model_hash)
        for member in self.members.values():
            member.bind(model_hash)
        for client in self.clients.values():
            client.bind(model_hash)

    def submit(self, vectors: Mapping[int, npt.NDArray[Any]]) -> None:
        """Let the clients with a vector send their one message."""
        for index, vector in vectors.items():
            self.submissions[index] = self.clients[index].mask(vector, self.announcements)
            self.server.submitted(index, self.submissions[index])

    def open(self, gone: Collection[int] = ()) -> None:
        """Let the members open the envelopes."""
        listings = {member: self.server.listing(member) for member in self.members}
        for member in self._answering(gone):
            self.openings[member] = self.members[member].open(self.announcements, listings[member])
            self.server.opened(member, self.openings[member])

    def answer(self, gone: Collection[int] = ()) -> None:
        """Let the members answer, and take left-out clients out of the sum."""
        openings = self.server.openings()
        for index in self.server.left_out():
            self.server.withdraw(index, self.submissions[index])
        for member in self._answering(gone):
            self.answers[member] = self.members[member].answer(openings)
            self.server.answered(member, self.answers[member])

    def recover(self) -> None:
        """Let the members that are left make up for the lost ones."""
        lost = self.server.lost()
        for member in sorted(self.present):
            self.consents[member] = self.members[member].consent(lost)
            self.server.consented(member, self.consents[member])
        consents = self.server.consents()
        for member in sorted(self.present):
            self.shares[member] = self.members[member].recover(consents)
            self.server.recovered(member, self.shares[member])

    def finish(self) -> npt.NDArray[Any]:
        """Return the sum over ``server.clients()``."""
        return self.server.finish()

    def run(self, vectors: Mapping[int, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Play a whole round with all members present and return the sum."""
        self.announce()
        self.submit(vectors)
        self.open()
        self.answer()
        return self.finish()
