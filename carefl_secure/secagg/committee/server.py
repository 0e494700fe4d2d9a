"""The server of a committee round: adds masked vectors as they come, takes the masks off once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import add_masks
from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import (
    Entry,
    Listing,
    MemberAnswer,
    MemberKey,
    SeedShares,
    Submission,
)
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.committee.recovery import lost_masks
from carefl_secure.secagg.committee.verify import read_announcements, read_loss, read_opening
from carefl_secure.secagg.primitives.checks import below_floor, lost_members, refuse
from carefl_secure.secagg.primitives.crypto import same, verify, words_digest
from carefl_secure.secagg.primitives.phases import ServerParticipant

__all__ = ["CommitteeServer"]


class ServerPhase(IntEnum):
    """Where a round stands at the server."""

    ANNOUNCING = 0
    SUBMITTING = 1
    OPENING = 2
    ANSWERING = 3
    CONSENTING = 4
    RECOVERING = 5
    OPENABLE = 6
    FINISHED = 7
    FAILED = 8


class CommitteeServer(ServerParticipant[CommitteeParameters, ServerPhase]):
    """The server's side of one committee round.

    ============ ================================ ================================================
    phase        per party                        ends the phase
    ============ ================================ ================================================
    announce     ``announced(member, message)``   ``announcements()`` to every client and member
    submit       ``submitted(index, message)``    ``listing(member)`` to each member
    open         ``opened(member, message)``      ``openings()`` to each member that opened
    answer       ``answered(member, message)``    ``lost()``; if it is empty, ``finish()``
    consent      ``consented(member, message)``   ``consents()`` to each member left
    recover      ``recovered(member, message)``   ``finish()``
    ============ ================================ ================================================

    After ``openings()``, ``left_out()`` names the clients whose envelopes failed somewhere; their
    submissions must be handed in again with ``withdraw(index, message)`` to be taken out of the
    sum, so keep submissions on disk until then. At most one vector of the round's size is held. A
    refused message leaves the state as it was. The methods that end a phase may be called again.

    Raises
    ------
    ProtocolError
        From every method, if a message fails a check; the text starts with the name of the check.
    CohortError
        When a phase ends with too few clients or members. The round is over, the sum dropped.

    Guarantees
    ----------
    ``finish`` returns the exact sum modulo ``2**bits`` of the vectors of the clients on the settled
    list, or raises, if clients and members followed the protocol. A member that lies about its sum
    of masks turns the result into noise; its signed answer says who it was only to someone who
    learns its seeds. Privacy rests on clients and members, not on this class.
    """

    def __init__(self, parameters: CommitteeParameters) -> None:
        super().__init__(parameters, ServerPhase.ANNOUNCING)
        self._announcements: dict[int, bytes] = {}
        self._transcript_hash = b""
        self._entries: dict[int, Entry] = {}
        self._envelopes: dict[int, tuple[bytes, ...]] = {}
        self._openings: dict[int, bytes] = {}
        self._left_out: set[int] = set()
        self._withdrawn: set[int] = set()
        self._settled = b""
        self._answered: set[int] = set()
        self._lost: tuple[int, ...] = ()
        self._consents: dict[int, bytes] = {}
        self._shares: dict[int, Mapping[tuple[int, int], int]] = {}
        self._sum: npt.NDArray[Any] = parameters.zeros()

    def _drop(self) -> None:
        self._sum = np.zeros(0, self._parameters.dtype)
        self._shares.clear()

    def bind(self, model_hash: bytes) -> None:
        """End the phase of announcing and bind the keys to the model of the round; once."""
        self.announcements()
        self._parameters = self._parameters.bind(model_hash)

    def _members(self) -> set[int]:
        return set(range(self._parameters.size))

    def announced(self, member: int, message: bytes) -> None:
        """Take in a member's key."""
        known = member in self._members()
        self._accept(
            ServerPhase.ANNOUNCING,
            f"member {member}",
            repeated=member in self._announcements,
            member=known,
        )
        parsed = MemberKey.parse(message, member, self._parameters)
        fields = transcript.member_key(self._parameters.key_context(), member, parsed.public)
        self._verify(member, parsed.signature, transcript.MEMBER_KEY, fields)
        self._announcements[member] = bytes(message)

    def _verify(
        self, member: int, signature: bytes, label: bytes, fields: tuple[bytes, ...]
    ) -> None:
        verify(self._parameters.members[member], signature, member, label, *fields, party="member")

    def announcements(self) -> dict[int, bytes]:
        """End the phase and return all announcements; every member is needed here."""
        if self._ends(ServerPhase.ANNOUNCING):
            missing = self._members() - self._announcements.keys()
            if missing:
                raise self._fail(lost_members(missing, 0))
            _, self._transcript_hash = read_announcements(self._announcements, self._parameters)
            self._phase = ServerPhase.SUBMITTING
        return dict(self._announcements)

    def submitted(self, index: int, message: bytes) -> None:
        """Check a client's message and add its vector; envelopes are kept, words are not."""
        known = 0 <= index < self._parameters.clients
        self._accept(
            ServerPhase.SUBMITTING, f"client {index}", repeated=index in self._entries, member=known
        )
        parsed, entry = self._read(index, message)
        np.add(self._sum, parsed.vector(self._parameters), out=self._sum)
        self._entries[index] = entry
        self._envelopes[index] = parsed.envelopes

    def _read(self, index: int, message: bytes) -> tuple[Submission, Entry]:
        parsed = Submission.parse(message, index, self._parameters)
        entry = parsed.entry(words_digest(parsed.words))
        fields = entry.fields(self._context, self._transcript_hash, index)
        key = self._parameters.roster[index]
        verify(key, entry.signature, index, transcript.SUBMISSION, *fields)
        return parsed, entry

    def listing(self, member: int) -> bytes:
        """End the phase and return the list of clients for one member."""
        if self._ends(ServerPhase.SUBMITTING):
            floor = self._parameters.floor
            if len(self._entries) < floor:
                raise self._fail(below_floor("submitting", len(self._entries), floor))
            self._phase = ServerPhase.OPENING
        if member not in self._members():
            raise refuse("membership", f"there is no member {member}")
        envelopes = {index: pair[member] for index, pair in self._envelopes.items()}
        return Listing(self._entries, envelopes).encode(member, self._context)

    def opened(self, member: int, message: bytes) -> None:
        """Take in a member's statement of which envelopes do not open."""
        self._accept(
            ServerPhase.OPENING,
            f"member {member}",
            repeated=member in self._openings,
            member=member in self._members(),
        )
        opening = read_opening(message, member, self._transcript_hash, self._parameters)
        if not same(opening.listed, self._listed()) or not set(opening.failed) <= set(
            self._entries
        ):
            raise refuse("client list", f"member {member} opened another list than was sent")
        self._openings[member] = bytes(message)
        self._left_out |= set(opening.failed)

    def _listed(self) -> bytes:
        return transcript.client_list(
            self._context,
            self._transcript_hash,
            (
                entry.fields(self._context, self._transcript_hash, index)
                for index, entry in sorted(self._entries.items())
            ),
        )

    def openings(self) -> dict[int, bytes]:
        """End the phase and return the members' openings, to be sent to each that opened."""
        if self._ends(ServerPhase.OPENING):
            if len(self._openings) < self._parameters.quorum:
                missing = self._members() - self._openings.keys()
                raise self._fail(lost_members(missing, self._parameters.dropout_tolerance))
            left = len(self._entries) - len(self._left_out)
            if left < self._parameters.floor:
                raise self._fail(below_floor("opening", left, self._parameters.floor))
            self._settled = transcript.outcome(self._context, self._transcript_hash, self._openings)
            self._envelopes.clear()
            self._phase = ServerPhase.ANSWERING
        return dict(self._openings)

    def left_out(self) -> tuple[int, ...]:
        """Return the clients whose envelopes failed, after the phase of opening."""
        if not self._settled:
            raise refuse("step order", "the members have not opened the envelopes yet")
        return tuple(sorted(self._left_out))

    def clients(self) -> tuple[int, ...]:
        """Return the clients in the sum, after the phase of opening."""
        gone = set(self.left_out())
        return tuple(sorted(self._entries.keys() - gone))

    def withdraw(self, index: int, message: bytes) -> None:
        """Take a left-out client's vector off the sum again."""
        if index not in self.left_out() or index in self._withdrawn:
            raise refuse("left-out client", f"client {index} is not to be withdrawn, or was")
        parsed, entry = self._read(index, message)
        if entry != self._entries[index]:
            raise refuse("left-out client", f"client {index} sent another message before")
        np.subtract(self._sum, parsed.vector(self._parameters), out=self._sum)
        self._withdrawn.add(index)

    def answered(self, member: int, message: bytes) -> None:
        """Check a member's sum of masks and take it off."""
        self._accept(
            ServerPhase.ANSWERING,
            f"member {member}",
            repeated=member in self._answered,
            member=member in self._openings,
        )
        answer = MemberAnswer.parse(message, member, self._parameters)
        fields = transcript.answer(
            self._context, self._transcript_hash, member, answer.settled, words_digest(answer.words)
        )
        self._verify(member, answer.signature, transcript.MEMBER_ANSWER, fields)
        if not same(answer.settled, self._settled):
            raise refuse("client list", f"member {member} answered for another list than was sent")
        np.subtract(self._sum, answer.vector(self._parameters), out=self._sum)
        self._answered.add(member)

    def lost(self) -> tuple[int, ...]:
        """End the phase and return the members whose answers never came."""
        if self._ends(ServerPhase.ANSWERING):
            self._lost = tuple(sorted(self._members() - self._answered))
            if len(self._lost) > self._parameters.dropout_tolerance:
                raise self._fail(lost_members(self._lost, self._parameters.dropout_tolerance))
            self._phase = ServerPhase.CONSENTING if self._lost else ServerPhase.OPENABLE
        return self._lost

    def consented(self, member: int, message: bytes) -> None:
        """Take in a member's statement of who is lost."""
        self._accept(
            ServerPhase.CONSENTING,
            f"member {member}",
            repeated=member in self._consents,
            member=member in self._answered,
        )
        loss = read_loss(message, member, self._transcript_hash, self._parameters)
        if not same(loss.settled, self._settled) or loss.lost != self._lost:
            raise refuse("loss consents", f"member {member} consented to something else")
        self._consents[member] = bytes(message)

    def consents(self) -> dict[int, bytes]:
        """End the phase and return the consents, to be sent to each member left."""
        if self._ends(ServerPhase.CONSENTING):
            self._all_present(self._consents)
            self._phase = ServerPhase.RECOVERING
        return dict(self._consents)

    def _all_present(self, heard: Collection[int]) -> None:
        missing = self._answered - set(heard)
        if missing:
            raise self._fail(lost_members(missing, 0))

    def recovered(self, member: int, message: bytes) -> None:
        """Take in a member's shares of the lost members' seeds."""
        self._accept(
            ServerPhase.RECOVERING,
            f"member {member}",
            repeated=member in self._shares,
            member=member in self._answered,
        )
        parsed = SeedShares.parse(message, member, self._parameters)
        shares = parsed.by_client(self._lost, self.clients())
        fields = transcript.seed_shares(
            self._context, self._transcript_hash, member, self._settled, parsed.content()
        )
        self._verify(member, parsed.signature, transcript.SEED_SHARES, fields)
        self._shares[member] = shares

    def finish(self) -> npt.NDArray[Any]:
        """Return the sum over ``clients()``, shape ``[dimension]``; once.

        Raises
        ------
        ProtocolError
            If a left-out client was not withdrawn (the round goes on), or a rebuilt seed is not the
            one its client committed to (the round is over).
        CohortError
            If members are lost beyond recovery. The round is over.
        """
        if self._phase == ServerPhase.ANSWERING:
            self.lost()
        if self._phase not in (ServerPhase.OPENABLE, ServerPhase.RECOVERING):
            raise refuse("step order", f"the round stands at {self._phase.name.lower()}")
        waiting = self._left_out - self._withdrawn
        if waiting:
            raise refuse(
                "left-out client",
                f"the vectors of clients {sorted(waiting)} are still in the sum; hand their"
                " messages to withdraw() first",
            )
        if self._lost:
            self._all_present(self._shares)
            try:
                masks = lost_masks(
                    parameters=self._parameters,
                    transcript_hash=self._transcript_hash,
                    entries={client: self._entries[client] for client in self.clients()},
                    lost=self._lost,
                    shares=self._shares,
                )
            except ProtocolError as error:
                raise self._fail(error) from error
            add_masks(self._sum, masks, [-1] * len(masks))
        self._phase = ServerPhase.FINISHED
        total, self._sum = self._sum, np.zeros(0, self._parameters.dtype)
        return total
