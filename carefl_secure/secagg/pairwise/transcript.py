"""What is signed, committed to and derived at each step, in one place for both sides."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from carefl_secure.secagg.pairwise.messages import Advertisement, RoundParameters
from carefl_secure.secagg.primitives.crypto import Buffer, check_encoding, derive, digest, pack, refuse

ADVERTISEMENT = b"advertisement"
UPLOAD = b"upload"
SURVIVORS = b"survivor set"
ANSWER = b"answer"


def commitment(context: bytes, index: int, self_mask: Buffer) -> bytes:
    """Commit to the self-mask secret ``b_i``; hiding because the secret has 256 bits."""
    return digest(b"commitment", context, pack(index), self_mask)


def advertisement(
    context: bytes, index: int, encryption_key: bytes, mask_key: bytes, committed: bytes
) -> tuple[bytes, ...]:
    """Return the fields signed in step 0."""
    return context, pack(index), encryption_key, mask_key, committed


def survivors(
    context: bytes, transcript_hash: bytes, shared: Collection[int], kept: Collection[int]
) -> tuple[bytes, ...]:
    """Return the fields signed in step 3: both sets, ascending."""
    return context, transcript_hash, pack(*sorted(shared)), pack(*sorted(kept))


def hash_messages(context: bytes, messages: Mapping[int, bytes]) -> bytes:
    """Hash all advertisements: who was shown another list derives other keys from here on."""
    return digest(b"transcript hash", context, *(pack(index) + messages[index] for index in sorted(messages)))


def sealing_key(secret: bytes, context: bytes, transcript_hash: bytes, source: int, target: int) -> bytes:
    """Derive the key of the one sealed message from ``source`` to ``target``."""
    return derive(secret, b"sealing key", context, transcript_hash, pack(source, target))


def self_mask_key(self_mask: Buffer, context: bytes, transcript_hash: bytes) -> bytes:
    """Derive the mask key that only this client holds."""
    return derive(self_mask, b"self mask", context, transcript_hash)


def pair_key(secret: bytes, context: bytes, transcript_hash: bytes, one: int, other: int) -> bytes:
    """Derive the mask key of two clients; the same from both ends."""
    return derive(secret, b"pair mask", context, transcript_hash, pack(min(one, other), max(one, other)))


def pair_sign(index: int, other: int) -> int:
    """Return the sign with which ``index`` adds the mask it shares with ``other``."""
    return 1 if index < other else -1


def read_advertisement(message: bytes, index: int, parameters: RoundParameters, used: set[bytes]) -> Advertisement:
    """Parse an advertisement; refuse one that is not signed, or a key in ``used``, and add both."""
    advert = Advertisement.parse(message, index, parameters)
    keys = advert.encryption_key, advert.mask_key
    fields = advertisement(parameters.key_context(), index, *keys, advert.commitment)
    parameters.check_signature(index, advert.signature, ADVERTISEMENT, fields)
    for key in keys:
        check_encoding(key, index)
    if keys[0] == keys[1] or used & set(keys):
        raise refuse("repeated key", f"client {index} advertised a key that was seen before")
    used.update(keys)
    return advert


def read_advertisements(messages: Mapping[int, bytes], parameters: RoundParameters) -> dict[int, Advertisement]:
    """Parse and verify all advertisements; refuse a key that occurs twice."""
    used: set[bytes] = set()
    return {index: read_advertisement(messages[index], index, parameters, used) for index in sorted(messages)}
