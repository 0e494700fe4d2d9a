"""What committee members signed, read with the same checks at clients, members and server."""

from __future__ import annotations

from collections.abc import Mapping

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import Loss, MemberKey, Opening
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import CURVE_BYTES, check_encoding, pack


def read_announcements(
    announcements: Mapping[int, bytes], parameters: CommitteeParameters
) -> tuple[dict[int, bytes], bytes]:
    """Return the keys of all members, verified and distinct, and the transcript hash."""
    if set(announcements) != set(range(parameters.size)):
        raise refuse("committee members", f"announcements came from members {sorted(announcements)}")
    context, keys = parameters.key_context(), {}
    for member, message in sorted(announcements.items()):
        parsed = MemberKey.parse(message, member, parameters)
        fields = transcript.member_key(context, member, parsed.public)
        parameters.check_signature(member, parsed.signature, transcript.MEMBER_KEY, fields, party="member")
        check_encoding(parsed.public[-CURVE_BYTES:], member, party="member")
        keys[member] = parsed.public
    halves = {half for key in keys.values() for half in (key[:-CURVE_BYTES], key[-CURVE_BYTES:])}
    if len(halves) != 2 * len(keys):
        raise refuse("repeated key", "two members announced the same key, or half of it")
    return keys, transcript.hash_messages(context, announcements)


def read_opening(message: bytes, member: int, transcript_hash: bytes, parameters: CommitteeParameters) -> Opening:
    """Parse a member's opening; refuse one that it did not sign in this round."""
    parsed = Opening.parse(message, member, parameters)
    content = transcript_hash, parsed.listed, pack(*sorted(parsed.failed))
    parameters.check_statement(member, parsed.signature, transcript.OPENING, *content, party="member")
    return parsed


def read_loss(message: bytes, member: int, transcript_hash: bytes, parameters: CommitteeParameters) -> Loss:
    """Parse a member's statement of who is lost; refuse one that it did not sign in this round."""
    parsed = Loss.parse(message, member, parameters)
    content = transcript_hash, parsed.settled, pack(*sorted(parsed.lost))
    parameters.check_statement(member, parsed.signature, transcript.LOSS, *content, party="member")
    return parsed
