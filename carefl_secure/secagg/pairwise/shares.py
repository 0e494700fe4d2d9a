"""What is done with shares: a client splits, seals, opens and gives them; the server rebuilds secrets and masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.pairwise import messages, transcript
from carefl_secure.secagg.pairwise.graph_planner import neighbours
from carefl_secure.secagg.pairwise.state import ClientState
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.crypto import SenderError, agree, open_sealed, public_bytes, refuse, same, seal
from carefl_secure.secagg.primitives.framing import header


def seal_shares(
    state: ClientState,
    adverts: Mapping[int, messages.Advertisement],
    transcript_hash: bytes,
    others: tuple[int, ...],
    parameters: messages.RoundParameters,
    polynomials: KeyStream,
) -> dict[int, bytes]:
    """Return a client's step-1 messages, keep what later steps need, and wipe the encryption key."""
    context = parameters.key_context()
    private = X25519PrivateKey.from_private_bytes(bytes(state.encryption_secret))
    sealing, opening = {}, {}
    for other in others:
        secret = agree(private, adverts[other].encryption_key, other)
        sealing[other] = transcript.sealing_key(secret, context, transcript_hash, state.index, other)
        opening[other] = transcript.sealing_key(secret, context, transcript_hash, other, state.index)
    points = [member + 1 for member in (state.index, *others)]
    of_mask, of_key = (
        shamir.split(int.from_bytes(secret, "little"), parameters.rebuilding, points, polynomials)
        for secret in (state.self_mask, state.mask_secret)
    )
    top = header(messages.Kind.SHARE, state.index, context)
    sent = {}
    for place, other in enumerate(others, start=1):
        sealed = seal(sealing[other], messages.pack_pair(of_mask[place], of_key[place]), top)
        sent[other] = messages.Share(other, sealed).encode(state.index, context)
    state.transcript_hash = transcript_hash
    state.members = tuple(sorted(adverts))
    state.own_share = bytearray(of_mask[0].to_bytes(shamir.SHARE_BYTES, "little"))
    state.mask_keys = {other: adverts[other].mask_key for other in others}
    state.opening_keys = {other: bytearray(key) for other, key in opening.items()}
    state.erase_after_share()
    return sent


def open_shares(
    state: ClientState, shares: Mapping[int, bytes], parameters: messages.RoundParameters
) -> dict[int, bytearray]:
    """Open what the neighbours sealed for this client; SenderError, nothing kept, if one message is invalid."""
    if not set(shares) <= state.opening_keys.keys():
        raise refuse("share senders", "shares came from clients that did not advertise")
    context = parameters.key_context()
    held = {}
    for sender, message in shares.items():
        try:
            sealed = messages.Share.parse(message, sender, parameters).to(state.index).sealed
            top = header(messages.Kind.SHARE, sender, context)
            raw = open_sealed(bytes(state.opening_keys[sender]), sealed, top, sender)
            messages.unpack_pair(raw)
        except ProtocolError as error:
            raise SenderError(error, sender) from error
        held[sender] = bytearray(raw)
    return held


def mask_keys(state: ClientState, context: bytes, live: Collection[int]) -> tuple[list[bytes], list[int]]:
    """Return keys and signs of all masks of an upload, the self mask first; ``live`` shared before it."""
    private = X25519PrivateKey.from_private_bytes(bytes(state.mask_secret))
    keys = [transcript.self_mask_key(state.self_mask, context, state.transcript_hash)]
    signs = [1]
    for other in sorted(live):
        secret = agree(private, state.mask_keys[other], other)
        keys.append(transcript.pair_key(secret, context, state.transcript_hash, state.index, other))
        signs.append(transcript.pair_sign(state.index, other))
    return keys, signs


def due_shares(state: ClientState, survivors: Collection[int]) -> dict[int, tuple[messages.Secret, int]]:
    """Return one share for each client: of a survivor of its self mask, of any other of its key; never both."""
    due = {state.index: (messages.Secret.SELF_MASK, int.from_bytes(state.own_share, "little"))}
    for other, raw in state.held.items():
        of_mask, of_key = messages.unpack_pair(bytes(raw))
        kept = other in survivors
        due[other] = (messages.Secret.SELF_MASK, of_mask) if kept else (messages.Secret.PAIR_KEY, of_key)
    return due


def remaining_masks(
    *,
    parameters: messages.RoundParameters,
    transcript_hash: bytes,
    adverts: Mapping[int, messages.Advertisement],
    shared: Collection[int],
    survivors: Collection[int],
    answers: Mapping[int, Mapping[int, int]],
    false_shares: set[tuple[int, int]],
) -> tuple[list[bytes], list[int]]:
    """Return keys and signs of all masks left in a sum of uploads.

    For each survivor its self mask; for each client that shared and did not upload, the pair masks that the survivors
    added for it. ``answers`` holds one share per answering client and owner. False shares are corrected
    (`shamir.decode`) and added to ``false_shares``, as who gave the share and whose secret it is of; whoever gave one
    comes last from then on. Raises `ProtocolError` if a secret is not the one advertised, `CohortError` if too few of
    its holders answered.
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
