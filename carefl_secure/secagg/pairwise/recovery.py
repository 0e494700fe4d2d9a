"""Rebuilding the secrets that the survivors answered for, and the masks left in the sum."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.graph import neighbours
from carefl_secure.secagg.pairwise.messages import Advertisement
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import agree, public_bytes, same

__all__ = ["remaining_masks"]


def remaining_masks(
    *,
    parameters: RoundParameters,
    transcript_hash: bytes,
    adverts: Mapping[int, Advertisement],
    shared: Collection[int],
    survivors: Collection[int],
    answers: Mapping[int, Mapping[int, int]],
) -> tuple[list[bytes], list[int]]:
    """Return keys and signs of all masks left in a sum of uploads.

    For each survivor its self mask; for each client that shared and did not upload, the pair masks
    that the survivors added for it. ``answers`` holds one share per answering client and owner.

    Raises
    ------
    ProtocolError
        If a rebuilt secret is not the one that its owner advertised.
    CohortError
        If too few holders of a secret answered.
    """
    context, key_context = parameters.context(), parameters.key_context()
    needed, answering = parameters.rebuilding, sorted(answers)
    weights: dict[tuple[int, ...], list[int]] = {}

    def rebuild(owner: int) -> tuple[bytes, tuple[int, ...]]:
        holders = (index for index in answering if owner in answers[index])
        chosen = tuple(itertools.islice(holders, needed))
        if len(chosen) < needed:
            raise CohortError(
                f"cohort floor: {len(chosen)} holders of the secrets of client {owner} answered,"
                f" {needed} are needed; nothing was released, start a new round"
            )
        if chosen not in weights:
            weights[chosen] = shamir.weights([index + 1 for index in chosen])
        value = shamir.combine(weights[chosen], (answers[index][owner] for index in chosen))
        if value >= 1 << 256:
            raise _false_share("secret", owner, chosen)
        return value.to_bytes(32, "little"), chosen

    keys: list[bytes] = []
    signs: list[int] = []
    for owner in sorted(survivors):
        self_mask, chosen = rebuild(owner)
        committed = transcript.commitment(key_context, owner, self_mask)
        if not same(committed, adverts[owner].commitment):
            raise _false_share("self mask", owner, chosen)
        keys.append(transcript.self_mask_key(self_mask, context, transcript_hash))
        signs.append(-1)
    for owner in sorted(set(shared) - set(survivors)):
        secret, chosen = rebuild(owner)
        private = X25519PrivateKey.from_private_bytes(secret)
        if not same(public_bytes(private), adverts[owner].mask_key):
            raise _false_share("mask key", owner, chosen)
        degree = parameters.neighbours
        for peer in neighbours(key_context, transcript_hash, adverts.keys(), owner, degree):
            if peer in survivors:
                agreed = agree(private, adverts[peer].mask_key, peer)
                keys.append(transcript.pair_key(agreed, context, transcript_hash, owner, peer))
                signs.append(-transcript.pair_sign(peer, owner))
    return keys, signs


def _false_share(what: str, owner: int, chosen: Collection[int]) -> ProtocolError:
    return refuse(
        "rebuilt secret",
        f"the {what} of client {owner} is not the one it advertised; one of the answers of"
        f" clients {list(chosen)} or what client {owner} shared is false; the round gives no sum",
    )
