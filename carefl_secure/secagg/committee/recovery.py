"""What committee members signed, read with the same checks everywhere, and the rebuilding of lost members' seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import CommitteeParameters, Entry, Loss, MemberKey, Opening
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.crypto import CURVE_BYTES, check_encoding, pack, refuse, same


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


def lost_masks(
    *,
    parameters: CommitteeParameters,
    transcript_hash: bytes,
    entries: Mapping[int, Entry],
    lost: Collection[int],
    shares: Mapping[int, Mapping[tuple[int, int], int]],
    false_shares: set[tuple[int, int]],
) -> list[bytes]:
    """Return the keys of the masks that lost members would have taken off; refuse a seed not committed to.

    ``shares`` are per member left, then per lost member and client. False ones are corrected (`shamir.decode`) and
    added to ``false_shares``, as member and client.
    """
    context, masks = parameters.context(), []
    for gone in lost:
        for client in sorted(entries):

            def fits(value: int, place: tuple[int, int] = (client, gone)) -> bool:
                seed = (value % (1 << 256)).to_bytes(32, "little")
                promised = transcript.commitment(context, transcript_hash, *place, seed)
                return same(promised, entries[place[0]].commitments[place[1]])

            held = {member: given[gone, client] for member, given in shares.items()}
            found = shamir.decode_held(held, parameters.quorum, fits, false_shares, client)
            if found is None:
                raise refuse(
                    "rebuilt seed",
                    f"the seed of client {client} for member {gone} is not the committed one: what that client shared "
                    f"is false, or more shares of members {sorted(shares)} than can be corrected; no sum comes of it",
                )
            seed = (found % (1 << 256)).to_bytes(32, "little")
            masks.append(transcript.mask_key(context, transcript_hash, client, gone, seed))
    return masks
