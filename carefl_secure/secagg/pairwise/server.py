"""The server of a secure sum: passes messages on, adds uploads as they come, opens only the sum."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import add_masks
from carefl_secure.secagg.pairwise import messages, transcript
from carefl_secure.secagg.pairwise.graph_planner import neighbours
from carefl_secure.secagg.pairwise.shares import remaining_masks
from carefl_secure.secagg.primitives.crypto import check_exchange_key, refuse, too_few
from carefl_secure.secagg.primitives.framing import Message
from carefl_secure.secagg.primitives.phases import ServerParticipant

ServerPhase = IntEnum("ServerPhase", "ADVERTISING SHARING UPLOADING CONSENTING ANSWERING FINISHED FAILED", start=0)
"""Where a round stands at the server."""


class PairwiseServer(ServerParticipant[messages.RoundParameters, ServerPhase]):
    """The server's side of one round.

    Five phases, each with a method that takes one client's message and one that ends the phase:

    ============== ============================== ==============================================
    phase          per client                     ends the phase
    ============== ============================== ==============================================
    advertise      ``advertised(index, message)`` ``advertisements()`` to everyone in it
    share          ``shared(index, shares)``      ``inbox(index)`` to each client that shared
    upload         ``uploaded(index, message)``   ``survivors()`` to each survivor
    consent        ``signed(index, message)``     ``signatures()`` to each that signed
    answer         ``answered(index, message)``   ``finish()``
    ============== ============================== ==============================================

    The model becomes known after the first two (:meth:`bind`). A client that has not been heard when a phase ends has
    dropped out. A refused message leaves the state as it was, so the caller may treat its sender as dropped out. The
    methods that end a phase may be called again. At most one vector of the round's size is held.

    Raises `ProtocolError` from every method, if a message fails a check; the text starts with the name of the check.
    Raises `CohortError` when a phase ends with too few clients. The round is over and the sum is dropped.

    Guarantees
    ----------
    ``finish`` returns the exact sum modulo ``2**bits`` of the vectors of the survivors that followed the protocol, or
    raises: every rebuilt secret is checked against what its owner committed to in a signed message, and as many false
    shares are corrected as `shamir.decode` says; `false_shares` names who gave them. A client that lies about its own
    vector is not detected. Privacy rests on the clients' checks, not on this class.
    """

    UPLOAD: ClassVar[type[Message]] = messages.Upload
    """The form of an upload."""

    def __init__(self, parameters: messages.RoundParameters) -> None:
        super().__init__(parameters, ServerPhase.ADVERTISING)
        self._key_context = parameters.key_context()
        self._keys: set[bytes] = set()
        self._messages: dict[int, bytes] = {}
        self._adverts: dict[int, messages.Advertisement] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}
        self._uploaded: set[int] = set()
        self._consents: dict[int, bytes] = {}
        self._answers: dict[int, dict[int, int]] = {}
        self._sum: npt.NDArray[Any] | None = None
        self.false_shares: set[tuple[int, int]] = set()
        """After `finish`: who gave a false share, and whose secret it is of."""

    def _end(self, phase: ServerPhase, present: int, needed: int) -> None:
        """Go from ``phase`` to the next if enough are present; do nothing if that was done."""
        self._ends(phase, too_few(phase.name.lower(), present, needed) if present < needed else None)

    def _drop(self) -> None:
        self._sum = None
        self._answers.clear()

    def advertised(self, index: int, message: bytes) -> None:
        """Take in a client's step-0 message."""
        self._accept(ServerPhase.ADVERTISING, index, self._messages, range(self._parameters.clients))
        used = set(self._keys)
        advert = transcript.read_advertisement(message, index, self._parameters, used)
        for key in (advert.encryption_key, advert.mask_key):
            check_exchange_key(key, index)
        self._keys = used
        self._adverts[index] = advert
        self._messages[index] = bytes(message)

    def advertisements(self) -> dict[int, bytes]:
        """End the phase and return all advertisements, to be sent to each of their owners."""
        self._end(ServerPhase.ADVERTISING, len(self._messages), self._parameters.required_survivors)
        if not self._transcript_hash:
            self._transcript_hash = transcript.hash_messages(self._key_context, self._messages)
        return dict(self._messages)

    def shared(self, index: int, shares: Mapping[int, bytes]) -> None:
        """Take in a client's step-1 messages: one for each of its neighbours."""
        self._accept(ServerPhase.SHARING, index, self._boxes, self._messages)
        if set(shares) != set(self._near(index)):
            raise refuse("share recipients", f"client {index} left out one of its neighbours")
        for recipient, message in shares.items():
            messages.Share.parse(message, index, self._parameters).to(recipient)
        self._boxes[index] = {to: bytes(message) for to, message in shares.items()}

    def _near(self, index: int) -> tuple[int, ...]:
        degree = self._parameters.neighbours
        return neighbours(self._key_context, self._transcript_hash, self._messages.keys(), index, degree)

    def bind(self, model_hash: bytes) -> None:
        """End the phase and bind the keys to the model of the round; once."""
        self._end(ServerPhase.SHARING, len(self._boxes), self._parameters.required_survivors)
        super().bind(model_hash)

    def inbox(self, index: int) -> dict[int, bytes]:
        """End the phase and return what the clients that shared have sealed for one of them."""
        self._end(ServerPhase.SHARING, len(self._boxes), self._parameters.required_survivors)
        if self._phase > ServerPhase.UPLOADING:
            raise refuse("step order", "the shares were passed on and are not kept any longer")
        if index not in self._boxes:
            raise refuse("membership", f"client {index} did not share")
        return {other: self._boxes[other][index] for other in self._near(index) if other in self._boxes}

    def uploaded(self, index: int, message: bytes) -> None:
        """Check a client's upload and add it to the sum; the message is not kept."""
        self._accept(ServerPhase.UPLOADING, index, self._uploaded, self._boxes)
        upload: Any = self.UPLOAD.parse(message, index, self._parameters)
        self._check(index, upload.signature, transcript.UPLOAD, upload.digest())
        self.add(index, upload)
        self._uploaded.add(index)

    def add(self, index: int, upload: Any) -> None:
        """Add a checked upload; a protocol with another form of it overrides this."""
        words = upload.vector(self._parameters)
        if self._sum is None:
            self._sum = words.astype(self._parameters.dtype)
        else:
            np.add(self._sum, words, out=self._sum)

    def survivors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """End the phase and return who shared and who of them uploaded; ``inbox`` is emptied."""
        self._end(ServerPhase.UPLOADING, len(self._uploaded), self._parameters.required_survivors)
        for box in self._boxes.values():  # passed on by now; those of the next round need the room
            box.clear()
        return tuple(sorted(self._boxes)), tuple(sorted(self._uploaded))

    def signed(self, index: int, message: bytes) -> None:
        """Take in a survivor's signature over the two sets."""
        self._accept(ServerPhase.CONSENTING, index, self._consents, self._uploaded)
        consent = messages.Consent.parse(message, index, self._parameters)
        fields = transcript.survivors(self._context, self._transcript_hash, self._boxes.keys(), self._uploaded)
        self._parameters.check_signature(index, consent.signature, transcript.SURVIVORS, fields)
        self._consents[index] = bytes(message)

    def signatures(self) -> dict[int, bytes]:
        """End the phase and return the signatures, to be sent to each that signed."""
        self._end(ServerPhase.CONSENTING, len(self._consents), self._parameters.threshold)
        return dict(self._consents)

    def answered(self, index: int, message: bytes) -> None:
        """Take in a survivor's shares."""
        self._accept(ServerPhase.ANSWERING, index, self._answers, self._consents)
        answer = messages.Answer.parse(message, index, self._parameters)
        self._check(index, answer.signature, transcript.ANSWER, answer.content())
        kinds = {owner: kind for owner, (kind, _) in answer.shares.items()}
        wanted = {
            owner: messages.Secret.SELF_MASK if owner in self._uploaded else messages.Secret.PAIR_KEY
            for owner in (index, *self._near(index))
            if owner in self._boxes
        }
        if kinds != wanted:
            raise refuse("answer content", f"client {index} did not give one due share for every neighbour")
        self._answers[index] = {owner: value for owner, (_, value) in answer.shares.items()}

    def finish(self) -> npt.NDArray[Any]:
        """Take the masks off and return the sum, shape ``[dimension]``; once. After an error the round is over.

        Raises `ProtocolError` if a rebuilt secret is not the committed one, `CohortError` if too few answered.
        """
        self._end(ServerPhase.ANSWERING, len(self._answers), self._parameters.threshold)
        try:
            keys, signs = remaining_masks(
                parameters=self._parameters,
                transcript_hash=self._transcript_hash,
                adverts=self._adverts,
                shared=self._boxes.keys(),
                survivors=self._uploaded,
                answers=self._answers,
                false_shares=self.false_shares,
            )
        except ProtocolError as error:
            raise self._fail(error) from error
        return self.unmasked(keys, signs)

    def unmasked(self, keys: list[bytes], signs: list[int]) -> npt.NDArray[Any]:
        """Take masks off the sum and return it; a protocol with another sum overrides this."""
        total, self._sum = self._sum, None
        if total is None:
            raise refuse("step order", "the sum was handed out before")
        add_masks(total, keys, signs)
        return total
