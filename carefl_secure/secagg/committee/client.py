"""The client of a committee round: one signed message, then it may leave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource, KeyStream, add_masks
from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import Submission
from carefl_secure.secagg.committee.parameters import CommitteeParameters
from carefl_secure.secagg.committee.verify import read_announcements
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import check_place, sign, words_digest
from carefl_secure.secagg.primitives.hpke import seal_envelope
from carefl_secure.secagg.primitives.phases import Participant

__all__ = ["CommitteeClient"]


class SubmitPhase(IntEnum):
    """Whether a client has sent its one message."""

    NEW = 0
    SUBMITTED = 1


class CommitteeClient(Participant[CommitteeParameters, SubmitPhase]):
    """The client's side of a committee round.

    The one message holds ``y = x + sum_h PRG(k_h)`` modulo ``2**bits`` over the members ``h`` and,
    per member, an envelope with the seed of ``k_h``; if members may be lost, also a Shamir share of
    every other member's seed.

    Raises
    ------
    ProtocolError
        If a check fails; its text starts with the name of the check, and nothing was sent.

    Guarantees
    ----------
    With at most ``parameters.max_corrupt_members`` members and any number of clients siding with
    the server, they learn nothing about the honest clients' vectors beyond one sum, over a list of
    at least ``parameters.floor`` clients: each honest member takes off its masks once, as one sum.
    Assumptions: roster and member keys are right; X-Wing or either half of it, Ed25519, SHA-256,
    AES-256 and HKDF hold; keys come from a sound source; a member destroys its round key. The sum
    itself is not hidden: only noise in the vectors protects that.
    """

    def __init__(
        self,
        parameters: CommitteeParameters,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        check_place(identity, index, parameters.roster)
        super().__init__(parameters, index, identity, keys)
        self._phase = SubmitPhase.NEW
        self._members: tuple[dict[int, bytes], bytes] | None = None

    @property
    def phase(self) -> SubmitPhase:
        """The last step answered."""
        return self._phase

    def bind(self, model_hash: bytes) -> None:
        """Bind the members' keys to the model of the round, before :meth:`submit`; once."""
        self._parameters = self._parameters.bind(model_hash)

    def receive(self, announcements: Mapping[int, bytes]) -> None:
        """Check the announcements of all members, by index."""
        self._require(SubmitPhase.NEW, "submit")
        self._members = read_announcements(announcements, self._parameters)

    def submit(
        self, vector: npt.NDArray[Any], announcements: Mapping[int, bytes] | None = None
    ) -> bytes:
        """Mask the vector (unchanged), seal the seeds to the members, sign it all; once.

        ``announcements`` are as in :meth:`receive`; None where that was called before.
        """
        self._require(SubmitPhase.NEW, "submit")
        parameters, context = self._parameters, self._context
        parameters.check_vector(vector)
        if announcements is not None:
            self.receive(announcements)
        if self._members is None:
            raise refuse("step order", "submit needs the members' announcements first")
        public, transcript_hash = self._members
        seeds = [self._keys.key("member seed") for _ in public]
        contents = self._contents(seeds)
        envelopes = tuple(
            seal_envelope(
                public[member],
                contents[member],
                transcript.envelope_info(context, transcript_hash, self._index, member),
                member,
            )
            for member in public
        )
        commitments = tuple(
            transcript.commitment(context, transcript_hash, self._index, member, seed)
            for member, seed in enumerate(seeds)
        )
        masked = vector.copy()
        masks = [
            transcript.mask_key(context, transcript_hash, self._index, member, seed)
            for member, seed in enumerate(seeds)
        ]
        add_masks(masked, masks, [1] * len(masks))
        words = masked.astype(masked.dtype.newbyteorder("<"), copy=False).data.cast("B")
        fields = transcript.submission(
            context,
            transcript_hash,
            self._index,
            words_digest(words),
            commitments,
            (hashlib.sha256(envelope).digest() for envelope in envelopes),
        )
        signature = sign(self._identity, transcript.SUBMISSION, *fields)
        self._phase = SubmitPhase.SUBMITTED
        return Submission(words, commitments, envelopes, signature).encode(self._index, context)

    def _contents(self, seeds: list[bytes]) -> list[bytes]:
        """Return what each envelope holds: the member's seed, and shares of the others'."""
        contents = list(seeds)
        if not self._parameters.dropout_tolerance:
            return contents
        stream = KeyStream(self._keys.key("seed polynomials"))
        for owner, seed in enumerate(seeds):
            others = [member for member in range(len(seeds)) if member != owner]
            shares = shamir.split(
                int.from_bytes(seed, "little"),
                self._parameters.quorum,
                [member + 1 for member in others],
                stream,
            )
            for member, share in zip(others, shares, strict=True):
                contents[member] += share.to_bytes(shamir.SHARE_BYTES, "little")
        return contents
