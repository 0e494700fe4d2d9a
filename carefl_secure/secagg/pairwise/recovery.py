"""Rebuilding the secrets that the survivors answered for, and the masks left in the sum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.errors import CohortError
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.graph import neighbours
from carefl_secure.secagg.pairwise.messages import Advertisement
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import agree, public_bytes, same


def remaining_masks(
    *,
    parameters: RoundParameters,
    transcript_hash: bytes,
    adverts: Mapping[int, Advertisement],
    shared: Collection[int],
    survivors: Collection[int],
    answers: Mapping[int, Mapping[int, int]],
    false_shares: set[tuple[int, int]],
) -> tuple[list[bytes], list[int]]:
    """Return keys and signs of all masks left in a sum of uploads.

    For each survivor its self mask; for each client that shared and did not upload, the pair masks that the survivors
    added for it. ``answers`` holds one share per answering client and owner. False shares are corrected
    (`shamir.decode`) and added to ``false_shares``, as who gave the share and whose secret it is of; whoever gave one
    is passed over from then on where others are enough.

    Raises `ProtocolError` if a secret cannot be rebuilt to what its owner advertised. Raises `CohortError` if too few
    holders of a secret answered.
    """
    context, key_context = parameters.context(), parameters.key_context()

    def rebuild(owner: int, what: str, accept: Callable[[bytes], bool]) -> bytes:
        def fits(value: int) -> bool:
            return value < 1 << 256 and accept(value.to_bytes(32, "little"))

        holders = {index: held[owner] for index, held in answers.items() if owner in held}
        if len(holders) < parameters.rebuilding:
            raise CohortError(
                f"min_survivors: {len(holders)} holders of the secrets of client {owner} answered,"
                f" {parameters.rebuilding} are needed; nothing was released, start a new round"
            )
        found = shamir.decode_held(holders, parameters.rebuilding, fits, false_shares, owner)
        if found is None:
            raise refuse(
                "rebuilt secret",
                f"the {what} of client {owner} is not the one it advertised: what it shared is false, or more "
                f"answers of clients {sorted(holders)} than can be corrected; the round gives no sum",
            )
        return found.to_bytes(32, "little")

    keys: list[bytes] = []
    signs: list[int] = []
    for owner in sorted(survivors):
        committed = adverts[owner].commitment
        self_mask = rebuild(
            owner,
            "self mask",
            lambda b, i=owner, c=committed: same(transcript.commitment(key_context, i, b), c),  # type: ignore[misc]
        )
        keys.append(transcript.self_mask_key(self_mask, context, transcript_hash))
        signs.append(-1)
    for owner in sorted(set(shared) - set(survivors)):
        public = adverts[owner].mask_key
        secret = rebuild(
            owner,
            "mask key",
            lambda s, k=public: same(public_bytes(X25519PrivateKey.from_private_bytes(s)), k),  # type: ignore[misc]
        )
        private, degree = X25519PrivateKey.from_private_bytes(secret), parameters.neighbours
        for other in neighbours(key_context, transcript_hash, adverts.keys(), owner, degree):
            if other in survivors:
                agreed = agree(private, adverts[other].mask_key, other)
                keys.append(transcript.pair_key(agreed, context, transcript_hash, owner, other))
                signs.append(-transcript.pair_sign(other, owner))
    return keys, signs
