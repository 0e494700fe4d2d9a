"""One client of a secure sum: five steps, each answered once, in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.noise import KeySource, KeyStream, add_masks
from carefl_secure.secagg import shamir, transcript
from carefl_secure.secagg.crypto import (
    agree,
    check_place,
    open_sealed,
    public_bytes,
    seal,
    sign,
    verify,
    words_digest,
)
from carefl_secure.secagg.graph import neighbours
from carefl_secure.secagg.parameters import RoundParameters
from carefl_secure.secagg.refusal import below_floor, refuse
from carefl_secure.secagg.state import ClientState, Phase
from carefl_secure.secagg.wire import (
    Advertisement,
    Answer,
    Consent,
    Kind,
    Secret,
    Share,
    Upload,
    header,
    pack_pair,
    unpack_pair,
)

__all__ = ["PeerClient"]


class PeerClient:
    """The client's side of one round (Bonawitz et al. 2017, the variant for active servers).

    The upload is ``y = x + PRG(b_i) + sum_{j > i} PRG(k_ij) - sum_{j < i} PRG(k_ij)`` modulo
    ``2**bits`` over the live peers ``j``, where ``b_i`` is the client's own secret and ``k_ij``
    the key it shares with ``j``. The pair masks cancel in the sum; the self masks come off when
    enough survivors give their shares of ``b``; the masks of a client that shared but never
    uploaded come off through shares of its key.

    Parameters
    ----------
    parameters
        What the round was agreed to be.
    index
        This client's place in the roster.
    identity
        The private half of ``parameters.roster[index]``.
    keys
        Where fresh keys come from; ``SystemKeySource()`` outside tests.

    Raises
    ------
    ProtocolError
        From every step, if a check fails; its text starts with the name of the check. Nothing
        has left the client then and the step may be tried again with honest input.
    CohortError
        If fewer than ``parameters.floor`` clients take part.

    Guarantees
    ----------
    The server and up to ``c = parameters.max_colluders`` colluding clients, who may lie, replay,
    cut the round short and choose who drops out, learn about the vectors of the honest clients
    nothing beyond one sum, over a set of at least ``parameters.floor`` clients of which at least
    ``floor - c`` are honest. Assumptions: the roster is right; X25519, Ed25519, SHA-256, AES-256
    and HKDF hold; keys come from a sound source; a restored state is never older than the last
    message sent; on a sparse graph, that it was planned for ``c`` colluders (``plan_graph``).
    The sum itself is not hidden: only noise in the vectors protects that.
    Availability and correctness are not guaranteed against lying clients: a false share ends the
    round without a result.
    """

    def __init__(
        self,
        parameters: RoundParameters,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        self._adopt(parameters, ClientState(index), identity, keys)

    def _adopt(
        self,
        parameters: RoundParameters,
        state: ClientState,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        check_place(identity, state.index, parameters.roster)
        self._parameters = parameters
        self._context = parameters.context()
        self._identity = identity
        self._keys = keys
        self._state = state

    @property
    def index(self) -> int:
        """Place of this client in the roster."""
        return self._state.index

    @property
    def phase(self) -> Phase:
        """The last step answered."""
        return self._state.phase

    def save(self) -> bytes:
        """Return the state, encrypted and authenticated under the client's identity.

        Store it *before* sending the message that the last step returned. A crash then loses at
        most a message, which counts as a dropout; no step can be answered twice.
        """
        return self._state.seal(self._identity, self._context, self._keys.key("saved state"))

    @classmethod
    def restore(
        cls,
        blob: bytes,
        identity: Ed25519PrivateKey,
        parameters: RoundParameters,
        keys: KeySource,
    ) -> PeerClient:
        """Go on from a saved state in the same round.

        Only the newest blob may be restored; keep one file and replace it.

        Raises
        ------
        ProtocolError
            If the blob was changed, or belongs to another client or round.
        """
        client = cls.__new__(cls)
        client._adopt(
            parameters, ClientState.open(blob, identity, parameters.context()), identity, keys
        )
        return client

    def close(self) -> None:
        """Wipe every secret and refuse all further steps.

        Python may have left copies behind in freed memory; this overwrites those it can reach.
        """
        self._state.erase_all()
        self._state.phase = Phase.CLOSED

    def _due(self, last: Phase, step: str) -> None:
        phase = self._state.phase
        if phase == last:
            return
        if phase > last:
            raise refuse("step order", f"{step} was answered before, or the round is closed")
        raise refuse("step order", f"{step} is not due yet, the last step was {phase.name.lower()}")

    def _enough(self, present: int, phase: str) -> None:
        if present < self._parameters.floor:
            raise below_floor(phase, present, self._parameters.floor)

    def advertise(self) -> bytes:
        """Step 0: make the secrets of the round and return their signed public halves."""
        self._due(Phase.NEW, "advertise")
        state = self._state
        state.encryption_secret = bytearray(self._keys.key("encryption key"))
        state.mask_secret = bytearray(self._keys.key("mask key"))
        state.self_mask = bytearray(self._keys.key("self mask"))
        public = (
            public_bytes(X25519PrivateKey.from_private_bytes(bytes(state.encryption_secret))),
            public_bytes(X25519PrivateKey.from_private_bytes(bytes(state.mask_secret))),
            transcript.commitment(self._context, state.index, state.self_mask),
        )
        signature = sign(
            self._identity,
            transcript.ADVERTISEMENT,
            *transcript.advertisement(self._context, state.index, *public),
        )
        state.advertisement = Advertisement(*public, signature).encode(state.index, self._context)
        state.phase = Phase.ADVERTISED
        return state.advertisement

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Step 1: check all advertisements and seal shares of both secrets to every neighbour.

        Parameters
        ----------
        advertisements
            The message of every client that takes part, this one included, by index.

        Returns
        -------
        dict
            One message per neighbour (every peer, if the graph is complete), for the server to
            pass on unopened.
        """
        self._due(Phase.ADVERTISED, "share")
        state, context = self._state, self._context
        if advertisements.get(state.index) != state.advertisement:
            raise refuse("own advertisement", "the list lacks mine, or holds another in its place")
        self._enough(len(advertisements), "advertising")
        adverts = transcript.read_advertisements(advertisements, self._parameters)
        beacon = transcript.beacon(context, advertisements)
        peers = neighbours(
            context, beacon, adverts.keys(), state.index, self._parameters.neighbours
        )
        private = X25519PrivateKey.from_private_bytes(bytes(state.encryption_secret))
        sealing, opening = {}, {}
        for peer in peers:
            secret = agree(private, adverts[peer].encryption_key, peer)
            sealing[peer] = transcript.sealing_key(secret, context, beacon, state.index, peer)
            opening[peer] = transcript.sealing_key(secret, context, beacon, peer, state.index)
        stream = KeyStream(self._keys.key("share polynomials"))
        points = [member + 1 for member in (state.index, *peers)]
        of_mask, of_key = (
            shamir.split(
                int.from_bytes(secret, "little"), self._parameters.rebuilding, points, stream
            )
            for secret in (state.self_mask, state.mask_secret)
        )
        top = header(Kind.SHARE, state.index, context)
        messages = {}
        for place, peer in enumerate(peers, start=1):
            sealed = seal(sealing[peer], pack_pair(of_mask[place], of_key[place]), top)
            messages[peer] = Share(peer, sealed).encode(state.index, context)
        state.beacon = beacon
        state.members = tuple(sorted(adverts))
        state.own_share = bytearray(of_mask[0].to_bytes(shamir.SHARE_BYTES, "little"))
        state.mask_keys = {peer: adverts[peer].mask_key for peer in peers}
        state.opening_keys = {peer: bytearray(key) for peer, key in opening.items()}
        state.erase_after_share()
        state.phase = Phase.SHARED
        return messages

    def mask(self, vector: npt.NDArray[Any], shares: Mapping[int, bytes]) -> bytes:
        """Step 2: open the peers' shares and upload the masked vector, signed.

        Parameters
        ----------
        vector
            Shape ``[dimension]``, uint16 or uint32 as agreed; not changed.
        shares
            The message of every neighbour that shared, by index.
        """
        self._due(Phase.SHARED, "mask")
        self._check_vector(vector)
        held, masks, signs = self._open_shares(shares)
        masked = vector.copy()
        add_masks(masked, masks, signs)
        words = masked.astype(masked.dtype.newbyteorder("<"), copy=False).data.cast("B")
        signature = self._sign_upload(words_digest(words))
        self._uploaded(held)
        return Upload(words, signature).encode(self._state.index, self._context)

    def _open_shares(
        self, shares: Mapping[int, bytes]
    ) -> tuple[dict[int, bytearray], list[bytes], list[int]]:
        """Return the peers' shares and the keys and signs of all masks of the upload."""
        state, context = self._state, self._context
        if not set(shares) <= state.opening_keys.keys():
            raise refuse("share senders", "shares came from clients that did not advertise")
        complete = self._parameters.neighbours is None
        needed = self._parameters.floor if complete else self._parameters.rebuilding
        if len(shares) + 1 < needed:
            raise below_floor("sharing", len(shares) + 1, needed)
        top = {peer: header(Kind.SHARE, peer, context) for peer in shares}
        held = {}
        for peer, message in shares.items():
            sealed = Share.parse(message, peer, state.index, self._parameters).sealed
            raw = open_sealed(bytes(state.opening_keys[peer]), sealed, top[peer], peer)
            unpack_pair(raw)
            held[peer] = bytearray(raw)
        private = X25519PrivateKey.from_private_bytes(bytes(state.mask_secret))
        masks = [transcript.self_mask_key(state.self_mask, context, state.beacon)]
        signs = [1]
        for peer in sorted(shares):
            secret = agree(private, state.mask_keys[peer], peer)
            masks.append(transcript.pair_key(secret, context, state.beacon, state.index, peer))
            signs.append(transcript.pair_sign(state.index, peer))
        return held, masks, signs

    def _sign_upload(self, content: bytes) -> bytes:
        state = self._state
        fields = transcript.upload(self._context, state.beacon, state.index, content)
        return sign(self._identity, transcript.UPLOAD, *fields)

    def _uploaded(self, held: dict[int, bytearray]) -> None:
        state = self._state
        state.held = held
        state.live = tuple(sorted((state.index, *held)))
        state.erase_after_mask()
        state.phase = Phase.MASKED

    def _check_vector(self, vector: object) -> None:
        expected = self._parameters.dtype
        shape = (self._parameters.dimension,)
        if not isinstance(vector, np.ndarray) or vector.dtype != expected or vector.shape != shape:
            raise refuse("vector shape", f"the vector must be {expected} of shape {shape}")

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Step 3: sign the one survivor set that this client will help to unmask.

        Parameters
        ----------
        shared
            Clients whose shares were passed on (U2).
        survivors
            Clients whose uploads are in the sum (U3).
        """
        self._due(Phase.MASKED, "sign")
        state = self._state
        given, kept = set(shared), set(survivors)
        if len(given) != len(shared) or len(kept) != len(survivors):
            raise refuse("survivor set", "a client is named twice")
        near = neighbours(
            self._context, state.beacon, state.members, state.index, self._parameters.neighbours
        )
        if not given <= set(state.members) or given & {state.index, *near} != set(state.live):
            raise refuse("share set", "it is not the set of clients whose shares reached me")
        if not kept <= given or state.index not in kept:
            raise refuse("survivor set", "it lacks me, or holds clients that never shared")
        self._enough(len(kept), "uploading")
        state.shared = tuple(sorted(given))
        state.survivors = tuple(sorted(kept))
        signature = sign(self._identity, transcript.SURVIVORS, *self._survivor_fields())
        state.phase = Phase.CONSENTED
        return Consent(signature).encode(state.index, self._context)

    def _survivor_fields(self) -> tuple[bytes, ...]:
        state = self._state
        return transcript.survivors(self._context, state.beacon, state.shared, state.survivors)

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Step 4: against enough signatures over my survivor set, give one share per client.

        For a survivor the share of its self mask, for a client that dropped out the share of its
        key; never both for one client. All secrets are wiped before the message is returned.

        Parameters
        ----------
        signatures
            Step-3 messages of survivors, by index; at least ``parameters.threshold``.
        """
        self._due(Phase.CONSENTED, "unmask")
        state = self._state
        kept = set(state.survivors)
        if not set(signatures) <= kept:
            raise refuse("consent signers", "a signature comes from outside the survivor set")
        if len(signatures) < self._parameters.threshold:
            raise refuse(
                "consent count",
                f"{len(signatures)} signatures, {self._parameters.threshold} are needed",
            )
        fields = self._survivor_fields()
        for peer, message in signatures.items():
            signature = Consent.parse(message, peer, self._parameters).signature
            verify(self._parameters.roster[peer], signature, peer, transcript.SURVIVORS, *fields)
        state.phase = Phase.ANSWERED
        own = int.from_bytes(state.own_share, "little")
        answers = {state.index: (Secret.SELF_MASK, own)}
        for peer, raw in state.held.items():
            of_mask, of_key = unpack_pair(bytes(raw))
            answers[peer] = (
                (Secret.SELF_MASK, of_mask) if peer in kept else (Secret.PAIR_KEY, of_key)
            )
        state.erase_all()
        content = Answer(answers, b"").fields()
        signature = sign(
            self._identity,
            transcript.ANSWER,
            *transcript.answer(self._context, state.beacon, state.index, content),
        )
        return Answer(answers, signature).encode(state.index, self._context)
