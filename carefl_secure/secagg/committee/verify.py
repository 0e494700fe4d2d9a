"""Reading what committee members signed: the same checks at clients, members and server."""

from __future__ import annotations

from collections.abc import Mapping

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import Loss, MemberKey, Opening
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import verify

__all__ = ["read_announcements", "read_loss", "read_opening"]


def read_announcements(
    announcements: Mapping[int, bytes], parameters: CommitteeParameters
) -> tuple[dict[int, bytes], bytes]:
    """Return the keys of all members, verified and distinct, and the transcript hash."""
    if set(announcements) != set(range(parameters.size)):
        raise refuse(
            "committee members", f"announcements came from members {sorted(announcements)}"
        )
    context, keys = parameters.key_context(), {}
    for member, message in sorted(announcements.items()):
        parsed = MemberKey.parse(message, member, parameters)
        verify(
            parameters.members[member],
            parsed.signature,
            member,
            transcript.MEMBER_KEY,
            *transcript.member_key(context, member, parsed.public),
            party="member",
        )
        keys[member] = parsed.public
    if len(set(keys.values())) != len(keys):
        raise refuse("repeated key", "two members announced the same key")
    return keys, transcript.hash_messages(context, announcements)


def read_opening(
    message: bytes, member: int, transcript_hash: bytes, parameters: CommitteeParameters
) -> Opening:
    """Parse a member's opening; refuse one that it did not sign in this round."""
    opening = Opening.parse(message, member, parameters)
    fields = transcript.opening(
        parameters.context(), transcript_hash, member, opening.listed, opening.failed
    )
    key = parameters.members[member]
    verify(key, opening.signature, member, transcript.OPENING, *fields, party="member")
    return opening


def read_loss(
    message: bytes, member: int, transcript_hash: bytes, parameters: CommitteeParameters
) -> Loss:
    """Parse a member's statement of who is lost; refuse one that it did not sign in this round."""
    loss = Loss.parse(message, member, parameters)
    fields = transcript.loss(parameters.context(), transcript_hash, member, loss.settled, loss.lost)
    key = parameters.members[member]
    verify(key, loss.signature, member, transcript.LOSS, *fields, party="member")
    return loss
