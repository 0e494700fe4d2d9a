"""The client of a committee round: one signed message, then it may leave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
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

__all__ = ["CommitteeClient"]


class CommitteeClient:
    """The client's side of a committee round.

    The one message holds ``y = x + sum_h PRG(k_h)`` modulo ``2**bits`` over the members ``h`` and,
    per member, an envelope with the seed of ``k_h``; with spares also, for each other member,
    a Shamir share of that member's seed.

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
        If a check fails; its text starts with the name of the check, and nothing was sent.

    Guarantees
    ----------
    With at most ``parameters.max_corrupt_members`` members siding with the server and any number
    of clients, they learn about the honest clients' vectors nothing beyond one sum, over a list
    of at least ``parameters.floor`` clients: each honest member takes off its masks once, as one
    sum. Assumptions: roster and member keys are right; X-Wing or either half of it, Ed25519,
    SHA-256, AES-256 and HKDF hold; keys come from a sound source; a member destroys its round
    key. The sum itself is not hidden: only noise in the vectors protects that.
    """

    def __init__(
        self,
        parameters: CommitteeParameters,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        check_place(identity, index, parameters.roster)
        self._parameters = parameters
        self._index = index
        self._identity = identity
        self._keys = keys
        self._done = False

    @property
    def index(self) -> int:
        """Place of this client in the roster."""
        return self._index

    @property
    def _context(self) -> bytes:
        return self._parameters.context()

    def bind(self, model_hash: bytes) -> None:
        """Say which model the members' keys, made ahead, are for; once, before :meth:`submit`.

        Raises
        ------
        ProtocolError
            If the round has a model.
        """
        self._parameters = self._parameters.bind(model_hash)

    def submit(self, vector: npt.NDArray[Any], announcements: Mapping[int, bytes]) -> bytes:
        """Mask the vector, seal the seeds to the members, sign it all; once.

        Parameters
        ----------
        vector
            Shape ``[dimension]``, uint16 or uint32 as agreed; not changed.
        announcements
            The message of every member, by index.
        """
        if self._done:
            raise refuse("step order", "submit was answered before")
        parameters, context = self._parameters, self._context
        self._check_vector(vector)
        public, seen = read_announcements(announcements, parameters)
        seeds = [self._keys.key("member seed") for _ in public]
        contents = self._contents(seeds)
        envelopes = tuple(
            seal_envelope(
                public[member],
                contents[member],
                transcript.envelope_info(context, seen, self._index, member),
                member,
            )
            for member in public
        )
        commitments = tuple(
            transcript.commitment(context, seen, self._index, member, seed)
            for member, seed in enumerate(seeds)
        )
        masked = vector.copy()
        masks = [
            transcript.mask_key(context, seen, self._index, member, seed)
            for member, seed in enumerate(seeds)
        ]
        add_masks(masked, masks, [1] * len(masks))
        words = masked.astype(masked.dtype.newbyteorder("<"), copy=False).data.cast("B")
        fields = transcript.submission(
            context,
            seen,
            self._index,
            words_digest(words),
            commitments,
            (hashlib.sha256(envelope).digest() for envelope in envelopes),
        )
        signature = sign(self._identity, transcript.SUBMISSION, *fields)
        self._done = True
        return Submission(words, commitments, envelopes, signature).encode(self._index, context)

    def _check_vector(self, vector: object) -> None:
        expected, shape = self._parameters.dtype, (self._parameters.dimension,)
        if not isinstance(vector, np.ndarray) or vector.dtype != expected or vector.shape != shape:
            raise refuse("vector shape", f"the vector must be {expected} of shape {shape}")

    def _contents(self, seeds: list[bytes]) -> list[bytes]:
        """Return what each envelope holds: the member's seed, and shares of the others'."""
        contents = list(seeds)
        if not self._parameters.spare:
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
