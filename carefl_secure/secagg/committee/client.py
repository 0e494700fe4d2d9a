"""The client of a committee round: one signed message, then it may leave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy.typing as npt

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.committee import transcript
from carefl_secure.secagg.committee.messages import CommitteeParameters, Submission
from carefl_secure.secagg.committee.recovery import read_announcements
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.crypto import refuse, seal_envelope
from carefl_secure.secagg.primitives.framing import check_vector, masked_words, words_digest
from carefl_secure.secagg.primitives.phases import ClientSum, Participant

SubmitPhase = IntEnum("SubmitPhase", "NEW SUBMITTED", start=0)
"""Whether a client has sent its one message."""


class CommitteeClient(Participant[CommitteeParameters, SubmitPhase], ClientSum):
    """The client's side of a committee round.

    The one message holds ``y = x + sum_h PRG(k_h)`` modulo ``2**bits`` over the members ``h`` and, per member, an
    envelope with the seed of ``k_h``; if members may be lost, also a Shamir share of every other member's seed. A
    failed check raises `ProtocolError`, whose text starts with its name; nothing was sent then.

    Guarantees
    ----------
    With at most ``parameters.max_corrupt_members`` members and any number of clients siding with the server, they
    learn nothing about the honest clients' vectors beyond one sum, over a list of at least
    ``parameters.min_survivors`` clients: each honest member takes off its masks once, as one sum. Assumptions: roster
    and member keys are right; X-Wing or either half of it, Ed25519, SHA-256, AES-256 and HKDF hold; keys come from a
    sound source; a member destroys its round key. The sum itself is not hidden: only noise in the vectors protects
    that.
    """

    FIRST = SubmitPhase.NEW
    _members: tuple[dict[int, bytes], bytes] | None = None

    def receive(self, messages: Mapping[int, bytes]) -> None:
        """Check the announcements of all members, by index."""
        self._require(SubmitPhase.NEW, "mask")
        self._members = read_announcements(messages, self._parameters)

    def mask(self, vector: npt.NDArray[Any], messages: Mapping[int, bytes] | None = None) -> bytes:
        """Mask the vector (unchanged), seal the seeds to the members, sign it all; once."""
        self._require(SubmitPhase.NEW, "mask")
        parameters, context = self._parameters, self._context
        check_vector(vector, parameters)
        if messages is not None:
            self.receive(messages)
        if self._members is None:
            raise refuse("step order", "mask needs the members' announcements first")
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
        masks = [
            transcript.mask_key(context, transcript_hash, self._index, member, seed)
            for member, seed in enumerate(seeds)
        ]
        words = masked_words(vector, masks, [1] * len(masks))
        fields = transcript.submission(
            context,
            transcript_hash,
            self._index,
            words_digest(words),
            commitments,
            (hashlib.sha256(envelope).digest() for envelope in envelopes),
        )
        signature = self._sign(transcript.SUBMISSION, fields)
        self._phase = SubmitPhase.SUBMITTED
        return Submission(words, commitments, envelopes, signature).encode(self._index, context)

    def _contents(self, seeds: list[bytes]) -> list[bytes]:
        """Return what each envelope holds: the member's seed, and shares of the others'."""
        contents = list(seeds)
        if not self._parameters.shares_per_envelope:
            return contents
        stream = KeyStream(self._keys.key("seed polynomials"))
        for owner, seed in enumerate(seeds):
            others = [member for member in range(len(seeds)) if member != owner]
            shares = shamir.split(
                int.from_bytes(seed, "little"), self._parameters.quorum, [member + 1 for member in others], stream
            )
            for member, share in zip(others, shares, strict=True):
                contents[member] += share.to_bytes(shamir.SHARE_BYTES, "little")
        return contents
