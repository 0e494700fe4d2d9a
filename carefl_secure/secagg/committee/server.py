"""The server of a committee round: adds masked vectors as they come, takes the masks off once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import add_masks
from carefl_secure.secagg.committee import messages, transcript
from carefl_secure.secagg.committee.recovery import lost_masks, read_announcements, read_loss, read_opening
from carefl_secure.secagg.primitives.crypto import refuse, same, too_few
from carefl_secure.secagg.primitives.framing import words_digest
from carefl_secure.secagg.primitives.phases import ServerParticipant

ServerPhase = IntEnum(
    "ServerPhase", "ANNOUNCING SUBMITTING OPENING ANSWERING CONSENTING RECOVERING OPENABLE FINISHED FAILED", start=0
)
"""Where a round stands at the server."""


class CommitteeServer(ServerParticipant[messages.CommitteeParameters, ServerPhase]):
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

    Raises `ProtocolError` from every method, if a message fails a check; the text starts with the name of the check.
    Raises `CohortError` when a phase ends with too few clients or members. The round is over, the sum dropped.

    Guarantees
    ----------
    ``finish`` returns the exact sum modulo ``2**bits`` of the vectors of the clients on the settled list, or raises,
    if clients and members followed the protocol. False shares of lost members' seeds are corrected as far as
    `shamir.decode` says, with one spare share for every member that is present beyond the quorum, and `false_shares`
    names who gave them. A member that lies about its sum of masks turns the result into noise; its signed answer says
    who it was only to someone who learns its seeds. Privacy rests on clients and members, not on this class.
    """

    SENDER = "member"

    def __init__(self, parameters: messages.CommitteeParameters) -> None:
        super().__init__(parameters, ServerPhase.ANNOUNCING)
        self._announcements: dict[int, bytes] = {}
        self._entries: dict[int, messages.Entry] = {}
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
        self.false_shares: set[tuple[int, int]] = set()
        """After `finish`: members that gave a false share, and the client whose seed it is of."""

    def _drop(self) -> None:
        self._sum = np.zeros(0, self._parameters.dtype)
        self._shares.clear()

    def bind(self, model_hash: bytes) -> None:
        """End the phase of announcing and bind the keys to the model of the round; once."""
        self.announcements()
        super().bind(model_hash)

    def _members(self) -> set[int]:
        return set(range(self._parameters.size))

    def announced(self, member: int, message: bytes) -> None:
        """Take in a member's key."""
        self._accept(ServerPhase.ANNOUNCING, member, self._announcements, self._members(), "member")
        parsed = messages.MemberKey.parse(message, member, self._parameters)
        fields = transcript.member_key(self._parameters.key_context(), member, parsed.public)
        self._parameters.check_signature(member, parsed.signature, transcript.MEMBER_KEY, fields, "member")
        self._announcements[member] = bytes(message)

    def announcements(self) -> dict[int, bytes]:
        """End the phase and return all announcements; every member is needed here."""
        missing = self._members() - self._announcements.keys()
        short = self._parameters.lost_members(missing, all_needed=True) if missing else None
        if self._ends(ServerPhase.ANNOUNCING, short):
            _, self._transcript_hash = read_announcements(self._announcements, self._parameters)
        return dict(self._announcements)

    def submitted(self, index: int, message: bytes) -> None:
        """Check a client's message and add its vector; envelopes are kept, words are not."""
        self._accept(ServerPhase.SUBMITTING, index, self._entries, range(self._parameters.clients))
        parsed, entry = self._read(index, message)
        np.add(self._sum, parsed.vector(self._parameters), out=self._sum)
        self._entries[index] = entry
        self._envelopes[index] = parsed.envelopes

    def _read(self, index: int, message: bytes) -> tuple[messages.Submission, messages.Entry]:
        parsed = messages.Submission.parse(message, index, self._parameters)
        entry = parsed.entry(words_digest(parsed.words))
        fields = entry.fields(self._context, self._transcript_hash, index)
        self._parameters.check_signature(index, entry.signature, transcript.SUBMISSION, fields)
        return parsed, entry

    def listing(self, member: int) -> bytes:
        """End the phase and return the list of clients for one member."""
        self._ends(ServerPhase.SUBMITTING, self._short("submitting", len(self._entries)))
        if member not in self._members():
            raise refuse("membership", f"there is no member {member}")
        clients = {index: (entry, self._envelopes[index][member]) for index, entry in self._entries.items()}
        return messages.Listing(clients).encode(member, self._context)

    def _short(self, phase: str, present: int) -> ProtocolError | None:
        needed = self._parameters.min_survivors
        return too_few(phase, present, needed) if present < needed else None

    def opened(self, member: int, message: bytes) -> tuple[int, ...]:
        """Take in a member's statement of which envelopes do not open, and return those clients."""
        self._accept(ServerPhase.OPENING, member, self._openings, self._members(), "member")
        opening = read_opening(message, member, self._transcript_hash, self._parameters)
        if not same(opening.listed, self._listed()) or not set(opening.failed) <= set(self._entries):
            raise refuse("client list", f"member {member} opened another list than was sent")
        self._openings[member] = bytes(message)
        self._left_out |= set(opening.failed)
        return opening.failed

    def _listed(self) -> bytes:
        return transcript.client_list(
            self._context,
            self._transcript_hash,
            (entry.fields(self._context, self._transcript_hash, i) for i, entry in sorted(self._entries.items())),
        )

    def openings(self) -> dict[int, bytes]:
        """End the phase and return the members' openings, to be sent to each that opened."""
        missing = self._members() - self._openings.keys()
        short = self._short("opening", len(self._entries) - len(self._left_out))
        if len(self._openings) < self._parameters.quorum:
            short = self._parameters.lost_members(missing)
        if self._ends(ServerPhase.OPENING, short):
            self._settled = transcript.outcome(self._context, self._transcript_hash, self._openings)
            self._envelopes.clear()
        return dict(self._openings)

    def left_out(self) -> tuple[int, ...]:
        """Return the clients whose envelopes failed, after the phase of opening."""
        if not self._settled:
            raise refuse("step order", "the members have not opened the envelopes yet")
        return tuple(sorted(self._left_out))

    def clients(self) -> tuple[int, ...]:
        """Return the clients in the sum, after the phase of opening."""
        return tuple(sorted(self._entries.keys() - set(self.left_out())))

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
        self._accept(ServerPhase.ANSWERING, member, self._answered, self._openings, "member")
        answer = messages.MemberAnswer.parse(message, member, self._parameters)
        self._check(member, answer.signature, transcript.MEMBER_ANSWER, answer.settled, words_digest(answer.words))
        if not same(answer.settled, self._settled):
            raise refuse("client list", f"member {member} answered for another list than was sent")
        np.subtract(self._sum, answer.vector(self._parameters), out=self._sum)
        self._answered.add(member)

    def lost(self) -> tuple[int, ...]:
        """End the phase and return the members whose answers never came."""
        if self._phase == ServerPhase.ANSWERING:
            self._lost = tuple(sorted(self._members() - self._answered))
        tolerated = self._parameters.tolerates(len(self._lost))
        short = None if tolerated else self._parameters.lost_members(self._lost)
        if self._ends(ServerPhase.ANSWERING, short) and not self._lost:
            self._phase = ServerPhase.OPENABLE
        return self._lost

    def consented(self, member: int, message: bytes) -> None:
        """Take in a member's statement of who is lost."""
        self._accept(ServerPhase.CONSENTING, member, self._consents, self._answered, "member")
        loss = read_loss(message, member, self._transcript_hash, self._parameters)
        if not same(loss.settled, self._settled) or loss.lost != self._lost:
            raise refuse("loss consents", f"member {member} consented to something else")
        self._consents[member] = bytes(message)

    def consents(self) -> dict[int, bytes]:
        """End the phase and return the consents, to be sent to each member left."""
        missing = self._answered - self._consents.keys()
        short = self._parameters.lost_members(missing, all_needed=True) if missing else None
        self._ends(ServerPhase.CONSENTING, short)
        return dict(self._consents)

    def recovered(self, member: int, message: bytes) -> None:
        """Take in a member's shares of the lost members' seeds."""
        self._accept(ServerPhase.RECOVERING, member, self._shares, self._answered, "member")
        parsed = messages.SeedShares.parse(message, member, self._parameters)
        shares = parsed.by_client(self._lost, self.clients())
        self._check(member, parsed.signature, transcript.SEED_SHARES, self._settled, parsed.content())
        self._shares[member] = shares

    def finish(self) -> npt.NDArray[Any]:
        """Return the sum over ``clients()``, shape ``[dimension]``; once.

        Raises `ProtocolError` if a left-out client was not withdrawn (the round goes on) or a seed cannot be rebuilt,
        `CohortError` if fewer than a quorum of members gave shares; the round is over then.
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
            if len(self._shares) < self._parameters.quorum:
                raise self._fail(self._parameters.lost_members(self._members() - self._shares.keys()))
            try:
                masks = lost_masks(
                    parameters=self._parameters,
                    transcript_hash=self._transcript_hash,
                    entries={client: self._entries[client] for client in self.clients()},
                    lost=self._lost,
                    shares=self._shares,
                    false_shares=self.false_shares,
                )
            except ProtocolError as error:
                raise self._fail(error) from error
            add_masks(self._sum, masks, [-1] * len(masks))
        self._phase = ServerPhase.FINISHED
        total, self._sum = self._sum, np.zeros(0, self._parameters.dtype)
        return total
