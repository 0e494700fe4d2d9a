"""What a client does with shares: split its secrets, seal them to its peers, open theirs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.messages import (
    Advertisement,
    Kind,
    Secret,
    Share,
    pack_pair,
    unpack_pair,
)
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.state import ClientState
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import agree, open_sealed, seal
from carefl_secure.secagg.primitives.framing import header

__all__ = ["due_shares", "mask_keys", "open_shares", "seal_shares"]


def seal_shares(
    state: ClientState,
    adverts: Mapping[int, Advertisement],
    transcript_hash: bytes,
    peers: tuple[int, ...],
    parameters: RoundParameters,
    polynomials: KeyStream,
) -> dict[int, bytes]:
    """Return a client's step-1 messages, and keep in its state what the later steps need.

    The encryption key is wiped. If a peer's key is degenerate, it is refused and nothing changes.
    """
    context = parameters.key_context()
    private = X25519PrivateKey.from_private_bytes(bytes(state.encryption_secret))
    sealing, opening = {}, {}
    for peer in peers:
        secret = agree(private, adverts[peer].encryption_key, peer)
        sealing[peer] = transcript.sealing_key(secret, context, transcript_hash, state.index, peer)
        opening[peer] = transcript.sealing_key(secret, context, transcript_hash, peer, state.index)
    points = [member + 1 for member in (state.index, *peers)]
    of_mask, of_key = (
        shamir.split(int.from_bytes(secret, "little"), parameters.rebuilding, points, polynomials)
        for secret in (state.self_mask, state.mask_secret)
    )
    top = header(Kind.SHARE, state.index, context)
    messages = {}
    for place, peer in enumerate(peers, start=1):
        sealed = seal(sealing[peer], pack_pair(of_mask[place], of_key[place]), top)
        messages[peer] = Share(peer, sealed).encode(state.index, context)
    state.transcript_hash = transcript_hash
    state.members = tuple(sorted(adverts))
    state.own_share = bytearray(of_mask[0].to_bytes(shamir.SHARE_BYTES, "little"))
    state.mask_keys = {peer: adverts[peer].mask_key for peer in peers}
    state.opening_keys = {peer: bytearray(key) for peer, key in opening.items()}
    state.erase_after_share()
    return messages


def open_shares(
    state: ClientState, shares: Mapping[int, bytes], parameters: RoundParameters
) -> dict[int, bytearray]:
    """Open what the neighbours sealed for this client; refuse all if one message is invalid."""
    if not set(shares) <= state.opening_keys.keys():
        raise refuse("share senders", "shares came from clients that did not advertise")
    context = parameters.key_context()
    held = {}
    for peer, message in shares.items():
        sealed = Share.parse(message, peer, parameters).to(state.index).sealed
        top = header(Kind.SHARE, peer, context)
        raw = open_sealed(bytes(state.opening_keys[peer]), sealed, top, peer)
        unpack_pair(raw)
        held[peer] = bytearray(raw)
    return held


def mask_keys(
    state: ClientState, context: bytes, live: Collection[int]
) -> tuple[list[bytes], list[int]]:
    """Return the keys and the signs of all masks of an upload, the self mask first.

    ``context`` includes the model; ``live`` are the peers whose shares arrived.
    """
    private = X25519PrivateKey.from_private_bytes(bytes(state.mask_secret))
    keys = [transcript.self_mask_key(state.self_mask, context, state.transcript_hash)]
    signs = [1]
    for peer in sorted(live):
        secret = agree(private, state.mask_keys[peer], peer)
        keys.append(transcript.pair_key(secret, context, state.transcript_hash, state.index, peer))
        signs.append(transcript.pair_sign(state.index, peer))
    return keys, signs


def due_shares(state: ClientState, survivors: Collection[int]) -> dict[int, tuple[Secret, int]]:
    """Return one share, and which secret it is of, per client whose secrets this one holds.

    Of a survivor that of its self mask, of any other that of its key; never both.
    """
    due = {state.index: (Secret.SELF_MASK, int.from_bytes(state.own_share, "little"))}
    for peer, raw in state.held.items():
        of_mask, of_key = unpack_pair(bytes(raw))
        kept = peer in survivors
        due[peer] = (Secret.SELF_MASK, of_mask) if kept else (Secret.PAIR_KEY, of_key)
    return due
