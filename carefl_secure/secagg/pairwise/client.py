"""One client of a secure sum: five steps, each answered once, in order; it outlives a crash."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.noise import KeySource, KeyStream
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.graph_planner import neighbours
from carefl_secure.secagg.pairwise.messages import Advertisement, Answer, Consent, RoundParameters, Upload
from carefl_secure.secagg.pairwise.shares import due_shares, mask_keys, open_shares, seal_shares
from carefl_secure.secagg.pairwise.state import ClientState, Phase
from carefl_secure.secagg.primitives.crypto import public_bytes, refuse, too_few
from carefl_secure.secagg.primitives.framing import Message, check_vector, masked_words
from carefl_secure.secagg.primitives.phases import ClientSum, Participant


class PairwiseClient(Participant[RoundParameters, Phase], ClientSum):
    """The client's side of one round (Bonawitz et al. 2017, the variant for active servers).

    The upload is ``y = x + PRG(b_i) + sum_{j > i} PRG(k_ij) - sum_{j < i} PRG(k_ij)`` modulo ``2**bits`` over the live
    neighbours ``j``, where ``b_i`` is the client's own secret and ``k_ij`` the key it shares with ``j``. The pair
    masks cancel in the sum. The self masks come off when enough survivors give their shares of ``b``; the masks of a
    client that shared but never uploaded come off through shares of its key. The model becomes known between the
    second and the third step (:meth:`bind`).

    Raises `ProtocolError`, whose text starts with the name of the check that failed: nothing has left the client then,
    and the step may be tried again. Raises `CohortError` if fewer than ``parameters.required_survivors`` take part.

    Guarantees
    ----------
    The server and up to ``c = parameters.max_colluders`` colluding clients, who may lie, replay, cut the round short
    and choose who drops out, learn nothing about the vectors of the honest clients beyond one sum, over at least ``m =
    parameters.required_survivors`` clients of which at least ``m - c`` are honest. Assumptions: the roster is right;
    X25519, Ed25519, SHA-256, AES-256 and HKDF hold; keys come from a sound source; a restored state is never older
    than the last message sent; a sparse graph was planned for ``c`` colluders (``plan_graph``). The sum itself is not
    hidden: only noise in the vectors protects that. Availability and correctness are not guaranteed against lying
    clients: the server corrects only so many false shares (`shamir.decode`).
    """

    FIRST = Phase.NEW
    _received: tuple[dict[int, bytearray], list[bytes], list[int]] | None = None

    def __init__(self, parameters: RoundParameters, index: int, identity: Ed25519PrivateKey, keys: KeySource) -> None:
        super().__init__(parameters, index, identity, keys)
        self._state = ClientState(index)

    @property
    def phase(self) -> Phase:
        """The last step answered."""
        return self._state.phase

    def save(self) -> bytes:
        """Return the state, sealed under the client's identity; store it *before* sending the last message.

        A crash then loses at most a message, which counts as a dropout; no step can be answered twice.
        """
        context = self._parameters.latest_context()
        return self._state.seal(self._identity, context, self._keys.key("saved state"))

    @classmethod
    def restore(cls, blob: bytes, identity: Ed25519PrivateKey, parameters: RoundParameters, keys: KeySource) -> Self:
        """Go on from the newest saved state, never an older one; refuse a blob changed or of another round."""
        state = ClientState.open(blob, identity, parameters.latest_context())
        client = cls(parameters, state.index, identity, keys)
        client._state = state
        return client

    def close(self) -> None:
        """Wipe every secret that Python lets it reach, and refuse all further steps."""
        self._state.erase_all()
        self._state.phase = Phase.CLOSED

    def _enough(self, present: int, phase: str) -> None:
        if present < self._parameters.required_survivors:
            raise too_few(phase, present, self._parameters.required_survivors)

    def advertise(self) -> bytes:
        """Step 0: make the secrets of the round and return their signed public halves."""
        self._require(Phase.NEW, "advertise")
        state, context = self._state, self._parameters.key_context()
        state.encryption_secret = bytearray(self._keys.key("encryption key"))
        state.mask_secret = bytearray(self._keys.key("mask key"))
        state.self_mask = bytearray(self._keys.key("self mask"))
        public = (
            public_bytes(X25519PrivateKey.from_private_bytes(bytes(state.encryption_secret))),
            public_bytes(X25519PrivateKey.from_private_bytes(bytes(state.mask_secret))),
            transcript.commitment(context, state.index, state.self_mask),
        )
        fields = transcript.advertisement(context, state.index, *public)
        signature = self._sign(transcript.ADVERTISEMENT, fields)
        state.advertisement = Advertisement(*public, signature).encode(state.index, context)
        state.phase = Phase.ADVERTISED
        return state.advertisement

    def share(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Step 1: check all advertisements, mine included; seal shares of both secrets."""
        self._require(Phase.ADVERTISED, "share")
        state, parameters = self._state, self._parameters
        if advertisements.get(state.index) != state.advertisement:
            raise refuse("own advertisement", "the list lacks mine, or holds another in its place")
        self._enough(len(advertisements), "advertising")
        adverts = transcript.read_advertisements(advertisements, parameters)
        context = parameters.key_context()
        transcript_hash = transcript.hash_messages(context, advertisements)
        near = neighbours(context, transcript_hash, adverts.keys(), state.index, parameters.neighbours)
        stream = KeyStream(self._keys.key("share polynomials"))
        messages = seal_shares(state, adverts, transcript_hash, near, parameters, stream)
        state.phase = Phase.SHARED
        return messages

    def bind(self, model_hash: bytes) -> None:
        """Bind the keys to the round's model (32 bytes), after step 1 and before step 2; once."""
        self._require(Phase.SHARED, "bind")
        super().bind(model_hash)

    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Open and check the neighbours' shares, by index; nothing is kept if one is refused."""
        self._require(Phase.SHARED, "mask")
        complete = self._parameters.neighbours is None
        needed = self._parameters.required_survivors if complete else self._parameters.rebuilding
        if len(messages) + 1 < needed:
            raise too_few("sharing", len(messages) + 1, needed)
        held = open_shares(self._state, messages, self._parameters)
        self._received = held, *mask_keys(self._state, self._context, held)

    def mask(self, vector: npt.NDArray[Any], messages: Mapping[int, bytes] | None = None) -> bytes:
        """Step 2: upload the masked vector, signed; the vector is not changed."""
        self._require(Phase.SHARED, "mask")
        state, context = self._state, self._context
        check_vector(vector, self._parameters)
        if messages is not None:
            self.receive(messages)
        if self._received is None:
            raise refuse("step order", "mask needs the shares of the other clients first")
        held, keys, signs = self._received
        upload = self.hide(vector, keys, signs)
        message = upload.signed(self._sign_statement(transcript.UPLOAD, state.transcript_hash, upload.digest()))
        state.held, self._received = held, None
        state.live = tuple(sorted((state.index, *held)))
        state.erase_after_mask()
        state.phase = Phase.MASKED
        return message.encode(state.index, context)

    def hide(self, vector: npt.NDArray[Any], keys: list[bytes], signs: list[int]) -> Message:
        """Return an unsigned upload of a masked vector, which is not changed; may be overridden."""
        return Upload(masked_words(vector, keys, signs))

    def sign(self, shared: Collection[int], survivors: Collection[int]) -> bytes:
        """Step 3: sign the one pair of sets, who shared and who uploaded, that this client will help to unmask."""
        self._require(Phase.MASKED, "sign")
        state = self._state
        given, kept = set(shared), set(survivors)
        if len(given) != len(shared) or len(kept) != len(survivors):
            raise refuse("survivor set", "a client is named twice")
        context, degree = self._parameters.key_context(), self._parameters.neighbours
        near = neighbours(context, state.transcript_hash, state.members, state.index, degree)
        if not given <= set(state.members) or given & {state.index, *near} != set(state.live):
            raise refuse("share set", "it is not the set of clients whose shares reached me")
        if not kept <= given or state.index not in kept:
            raise refuse("survivor set", "it lacks me, or holds clients that never shared")
        self._enough(len(kept), "uploading")
        state.shared = tuple(sorted(given))
        state.survivors = tuple(sorted(kept))
        signature = self._sign(transcript.SURVIVORS, self._survivor_fields())
        state.phase = Phase.CONSENTED
        return Consent(signature).encode(state.index, self._context)

    def _survivor_fields(self) -> tuple[bytes, ...]:
        state = self._state
        return transcript.survivors(self._context, state.transcript_hash, state.shared, state.survivors)

    def unmask(self, signatures: Mapping[int, bytes]) -> bytes:
        """Step 4: against ``parameters.threshold`` signatures over my survivor set, give one share per client.

        For a survivor that of its self mask, for a client that dropped out that of its key; never both. All secrets
        are wiped before the message is returned.
        """
        self._require(Phase.CONSENTED, "unmask")
        state = self._state
        kept = set(state.survivors)
        if not set(signatures) <= kept:
            raise refuse("consent signers", "a signature comes from outside the survivor set")
        if len(signatures) < self._parameters.threshold:
            raise refuse("consent count", f"{len(signatures)} signatures, {self._parameters.threshold} are needed")
        fields = self._survivor_fields()
        for signer, message in signatures.items():
            signature = Consent.parse(message, signer, self._parameters).signature
            self._parameters.check_signature(signer, signature, transcript.SURVIVORS, fields)
        state.phase = Phase.ANSWERED
        answers = due_shares(state, kept)
        state.erase_all()
        content = Answer(answers, b"").content()
        signature = self._sign_statement(transcript.ANSWER, state.transcript_hash, content)
        return Answer(answers, signature).encode(state.index, self._context)
