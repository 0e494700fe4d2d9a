"""Rebuilding the seeds that lost members held, and with them the masks left in the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import Entry
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import same


def lost_masks(
    *,
    parameters: CommitteeParameters,
    transcript_hash: bytes,
    entries: Mapping[int, Entry],
    lost: Collection[int],
    shares: Mapping[int, Mapping[tuple[int, int], int]],
    false_shares: set[tuple[int, int]],
) -> list[bytes]:
    """Return the keys of the masks that lost members would have taken off.

    ``shares`` are per member left, then per lost member and client. False ones are corrected
    (`shamir.decode`) and added to ``false_shares``, as member and client. A seed that cannot be
    rebuilt to what its client committed to is refused.
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
                    f"the seed of client {client} for member {gone} is not the committed one: what"
                    f" that client shared is false, or more shares of members {sorted(shares)}"
                    " than can be corrected; no sum comes of it",
                )
            seed = (found % (1 << 256)).to_bytes(32, "little")
            masks.append(transcript.mask_key(context, transcript_hash, client, gone, seed))
    return masks
