"""A committee member for the length of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from flwr.app import RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, Helper
from carefl_secure.federation.transport.error_codes import Party
from carefl_secure.federation.transport.messages import Fields, pack, piggyback, piggybacked
from carefl_secure.secagg import CommitteeMember

_HEADER = ("round", "plan")
ACTIONS = (
    "query.committee_announce",
    "query.committee_announce_prefetch",
    "query.committee_open",
    "query.committee_answer",
    "query.committee_consent",
    "query.committee_recover",
)
"""The steps of a member."""


class MemberSession(Helper):
    """A committee member for the length of one run.

    Guarantees
    ----------
    In a round it gives one sum of masks, over one list of at least ``plan.privacy.min_survivors`` clients that every
    other member signed too; it is sent nothing that depends on a record but the envelopes' seeds. One honest member is
    enough; where members may be lost, it also gives, once, its shares of the seeds of at most as many lost members,
    and ``cohort.config.honest_members`` are needed.
    """

    party: ClassVar[Party] = "committee member"

    def __init__(self, setup: ClientSetup) -> None:
        super().__init__(setup)
        self._member: CommitteeMember | None = None
        self._next: CommitteeMember | None = None
        self._next_number = -1

    def actions(self) -> Mapping[str, Callable[[RecordDict], RecordDict]]:
        """Return the steps of a member."""
        steps = (self._announce, self._announce_prefetch, self._open_list, self._answer, self._consent, self._recover)
        return dict(zip(ACTIONS, steps, strict=True))

    def _announce(self, content: RecordDict) -> RecordDict:
        """Begin a round: make its key and return the public half, signed."""
        number = self._header(content)
        self.close()
        self._round, self._member = number, self._fresh(number)
        return pack(announcement=self._member.announce())

    def _header(self, content: RecordDict) -> int:
        """Return the number of a new round under the agreed plan."""
        fields = Fields(content, *_HEADER)
        self._check(fields.integer("round"), fields.octets("plan"))
        return fields.integer("round")

    def _fresh(self, number: int) -> CommitteeMember:
        setup = self._setup
        parameters = setup.cohort.committee_parameters(setup.plan, number)
        return CommitteeMember(parameters, self.index, setup.identity, setup.keys)

    def _announce_prefetch(self, content: RecordDict) -> RecordDict:
        """Make a key for a later round during this one, if that was agreed."""
        if not self._setup.cohort.prefetches:
            raise ProtocolError(
                "key prefetch: the server asks for a key of a later round, which is not agreed; "
                "compare federation.key_prefetch"
            )
        number = self._header(content)
        if number <= self._next_number:
            raise ProtocolError(f"key prefetch: a key for round {number} was shown before")
        self._drop_next()
        self._next, self._next_number = self._fresh(number), number
        return pack(announcement=self._next.announce())

    def _open_list(self, content: RecordDict) -> RecordDict:
        """Bind the key to the model, check and open the list; a round of a prefetched key begins here."""
        fields = Fields(content, *_HEADER, "model", "listing", maps=["announcements"])
        number, model_hash = fields.integer("round"), fields.octets("model")
        if self._member is None or number != self._round:
            self._begin_prefetched(number, fields.octets("plan"))
        member = self._open()
        if not member.parameters.model_hash:
            member.bind(model_hash)
        elif member.parameters.model_hash != model_hash:
            raise ProtocolError("the round is bound to another model; a key serves one model")
        return pack(opening=member.open(fields.map("announcements"), fields.octets("listing")))

    def _begin_prefetched(self, number: int, plan_hash: bytes) -> None:
        self._check(number, plan_hash)
        if self._next is None or number != self._next_number:
            raise ProtocolError(f"key prefetch: there is no key for round {number}")
        self._end()
        self._member, self._next, self._round = self._next, None, number

    def _answer(self, content: RecordDict) -> RecordDict:
        """Give the one sum of masks, then forget the round, unless members may still be lost."""
        openings, later = Fields(content, maps=["openings"]).map("openings"), piggybacked(content)
        member = self._open()
        answer = pack(answer=member.answer(openings))
        if not member.parameters.tolerates(1):
            self._end()
        return answer if later is None else piggyback(answer, self._announce_prefetch(later))

    def _consent(self, content: RecordDict) -> RecordDict:
        """Say once which members are lost."""
        lost = Fields(content, "lost").integers("lost")
        return pack(consent=self._open().consent(lost))

    def _recover(self, content: RecordDict) -> RecordDict:
        """Give the shares of the lost members' seeds, then forget the round."""
        shares = self._open().recover(Fields(content, maps=["consents"]).map("consents"))
        self._end()
        return pack(seeds=shares)

    def close(self) -> None:
        """Erase the secrets of the round in progress and the prefetched key."""
        self._end()
        self._drop_next()

    def _end(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def _open(self) -> CommitteeMember:
        if self._member is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        return self._member
