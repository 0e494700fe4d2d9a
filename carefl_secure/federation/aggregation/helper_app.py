"""What a helper's node answers: carries bytes between Flower messages and a helper."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.helper_session import Helper, HolderSession, MemberSession
from carefl_secure.federation.transport.messages import Fields, pack, piggyback, piggybacked
from carefl_secure.federation.transport.node_directory import role_message

__all__ = ["HELPER_ACTIONS", "answer_as_helper"]

_HEADER = ("round", "plan")


def _announce(helper: Helper, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER)
    announcement = _member(helper).announce(fields.integer("round"), fields.octets("plan"))
    return pack(announcement=announcement)


def _announce_prefetch(helper: Helper, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER)
    announcement = _member(helper).announce_prefetch(fields.integer("round"), fields.octets("plan"))
    return pack(announcement=announcement)


def _open(helper: Helper, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER, "model", "listing", maps=["announcements"])
    opening = _member(helper).open(
        fields.integer("round"),
        fields.octets("plan"),
        fields.octets("model"),
        fields.map("announcements"),
        fields.octets("listing"),
    )
    return pack(opening=opening)


def _answer(helper: Helper, content: RecordDict) -> RecordDict:
    openings, later = Fields(content, maps=["openings"]).map("openings"), piggybacked(content)
    answer = pack(answer=_member(helper).answer(openings))
    return answer if later is None else piggyback(answer, _announce_prefetch(helper, later))


def _consent(helper: Helper, content: RecordDict) -> RecordDict:
    lost = Fields(content, "lost").integers("lost")
    return pack(consent=_member(helper).consent(lost))


def _recover(helper: Helper, content: RecordDict) -> RecordDict:
    consents = Fields(content, maps=["consents"]).map("consents")
    return pack(seeds=_member(helper).recover(consents))


def _key(helper: Helper, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER)
    return pack(key=_holder(helper).key(fields.integer("round"), fields.octets("plan")))


def _open_sum(helper: Helper, content: RecordDict) -> RecordDict:
    fields = Fields(content, "model", "sum")
    return pack(opened=_holder(helper).open(fields.octets("model"), fields.octets("sum")))


def _role(helper: Helper, content: RecordDict) -> RecordDict:
    Fields(content, "ask")
    return role_message(helper.index, helper=True)


HELPER_ACTIONS: Mapping[str, Callable[[Helper, RecordDict], RecordDict]] = {
    "query.committee_announce": _announce,
    "query.committee_announce_prefetch": _announce_prefetch,
    "query.committee_open": _open,
    "query.committee_answer": _answer,
    "query.committee_consent": _consent,
    "query.committee_recover": _recover,
    "query.holder_key": _key,
    "query.open_sum": _open_sum,
}
"""The steps that only helpers take, by Flower's type of the message."""


def answer_as_helper(helper: Helper | None, name: str, content: RecordDict) -> RecordDict:
    """Take one step of a helper; return a record with one value.

    ``helper`` is None on a client's node. ProtocolError when the step is not this party's.
    """
    if helper is None:
        raise ProtocolError(f"a client was asked for {name}, which only a helper answers")
    if name == "query.role":
        return _role(helper, content)
    if name not in HELPER_ACTIONS:
        raise ProtocolError(f"a helper was asked for {name}, which only a client answers")
    return HELPER_ACTIONS[name](helper, content)


def _member(helper: Helper) -> MemberSession:
    if not isinstance(helper, MemberSession):
        raise ProtocolError("only a committee member answers this; this party is none")
    return helper


def _holder(helper: Helper) -> HolderSession:
    if not isinstance(helper, HolderSession):
        raise ProtocolError("only the key holder answers this; this party is another")
    return helper
