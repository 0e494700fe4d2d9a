"""Rebuilding the seeds that lost members held, and with them the masks left in the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import Entry
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import same

__all__ = ["lost_masks"]


def lost_masks(
    *,
    parameters: CommitteeParameters,
    transcript_hash: bytes,
    entries: Mapping[int, Entry],
    lost: Collection[int],
    shares: Mapping[int, Mapping[tuple[int, int], int]],
) -> list[bytes]:
    """Return the keys of the masks that lost members would have taken off.

    ``shares`` are per member left, then per lost member and client. A rebuilt seed that differs
    from what its client committed to is refused.
    """
    context = parameters.context()
    chosen = sorted(shares)[: parameters.quorum]
    weight = shamir.weights([member + 1 for member in chosen])
    masks = []
    for gone in lost:
        for client, entry in sorted(entries.items()):
            value = shamir.combine(weight, (shares[member][gone, client] for member in chosen))
            seed = (value % (1 << 256)).to_bytes(32, "little")
            promised = transcript.commitment(context, transcript_hash, client, gone, seed)
            if not same(promised, entry.commitments[gone]):
                raise refuse(
                    "rebuilt seed",
                    f"the seed of client {client} for member {gone} is not the committed one;"
                    " what that client or one of the members gave is false; no sum comes of it",
                )
            masks.append(transcript.mask_key(context, transcript_hash, client, gone, seed))
    return masks
