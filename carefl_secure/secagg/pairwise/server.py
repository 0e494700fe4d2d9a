"""The server of a secure sum: passes messages on, adds uploads as they come, opens only the sum."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import add_masks
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.graph import neighbours
from carefl_secure.secagg.pairwise.messages import (
    Advertisement,
    Answer,
    Consent,
    Secret,
    Share,
    Upload,
)
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.recovery import remaining_masks
from carefl_secure.secagg.primitives.checks import below_floor, refuse
from carefl_secure.secagg.primitives.crypto import check_exchange_key, verify, words_digest

__all__ = ["PairwiseServer"]


class _Phase(IntEnum):
    ADVERTISING = 0
    SHARING = 1
    UPLOADING = 2
    CONSENTING = 3
    ANSWERING = 4
    FINISHED = 5
    FAILED = 6


class PairwiseServer:
    """The server's side of one round.

    Five phases, each a method that takes in one client's message and one that ends the phase and
    says what goes back:

    ============== ============================== ==============================================
    phase          per client                     ends the phase
    ============== ============================== ==============================================
    advertise      ``advertised(index, message)`` ``advertisements()`` to everyone in it
    share          ``shared(index, messages)``    ``inbox(index)`` to each client that shared
    upload         ``uploaded(index, message)``   ``survivors()`` to each survivor
    consent        ``signed(index, message)``     ``signatures()`` to each that signed
    answer         ``answered(index, message)``   ``finish()``
    ============== ============================== ==============================================

    Under ``AheadParameters`` the first two come before the model is known, and :meth:`bind` after
    them.

    A client that has not been heard when a phase ends has dropped out. A refused message leaves
    the state as it was, so the caller may treat its sender as dropped out. The methods that end
    a phase may be called again. At most one vector of the round's size is held at any time.

    Parameters
    ----------
    parameters
        What the round was agreed to be.

    Raises
    ------
    ProtocolError
        From every method, if a message does not pass its check; the text starts with the check.
    CohortError
        When a phase ends with too few clients. The round is over and the sum is dropped.

    Guarantees
    ----------
    ``finish`` returns the exact sum modulo ``2**bits`` of the vectors of the survivors that
    followed the protocol, or raises: every rebuilt secret is checked against what its owner
    committed to in a signed message. A client that lies about its own vector is not found out.
    Privacy rests on the clients' checks, not on this class.
    """

    def __init__(self, parameters: RoundParameters) -> None:
        self._parameters = parameters
        self._key_context = parameters.key_context()
        self._phase = _Phase.ADVERTISING
        self._beacon = b""
        self._messages: dict[int, bytes] = {}
        self._adverts: dict[int, Advertisement] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}
        self._uploaded: set[int] = set()
        self._consents: dict[int, bytes] = {}
        self._answers: dict[int, dict[int, int]] = {}
        self._sum: npt.NDArray[Any] | None = None

    def _during(self, phase: _Phase, index: int, heard: bool, member: bool) -> None:
        if self._phase != phase:
            raise refuse(
                "step order",
                f"a message of phase {phase.name.lower()} came in phase {self._phase.name.lower()}",
            )
        if not member:
            raise refuse("membership", f"client {index} has no part in this phase")
        if heard:
            raise refuse("duplicate message", f"client {index} has been heard in this phase")

    def _end(self, phase: _Phase, present: int, needed: int) -> None:
        """Go from ``phase`` to the next if enough are present; do nothing if that was done."""
        if self._phase in (_Phase.FAILED, _Phase.FINISHED) or self._phase < phase:
            raise refuse("step order", f"the round stands at {self._phase.name.lower()}")
        if self._phase > phase:
            return
        if present < needed:
            self._fail()
            raise below_floor(phase.name.lower(), present, needed)
        self._phase = _Phase(phase + 1)

    def _fail(self) -> None:
        self._phase = _Phase.FAILED
        self._sum = None
        self._answers.clear()

    def advertised(self, index: int, message: bytes) -> None:
        """Take in a client's step-0 message."""
        known = 0 <= index < self._parameters.clients
        self._during(_Phase.ADVERTISING, index, index in self._messages, known)
        advert = Advertisement.parse(message, index, self._parameters)
        transcript.verify_advertisement(advert, index, self._parameters)
        for key in (advert.encryption_key, advert.mask_key):
            check_exchange_key(key, index)
        used = {k for a in self._adverts.values() for k in (a.encryption_key, a.mask_key)}
        if advert.encryption_key == advert.mask_key or used & {
            advert.encryption_key,
            advert.mask_key,
        }:
            raise refuse("repeated key", f"client {index} advertised a key that was seen before")
        self._adverts[index] = advert
        self._messages[index] = bytes(message)

    def advertisements(self) -> dict[int, bytes]:
        """End the phase and return all advertisements, to be sent to each of their owners."""
        self._end(_Phase.ADVERTISING, len(self._messages), self._parameters.floor)
        if not self._beacon:
            self._beacon = transcript.beacon(self._key_context, self._messages)
        return dict(self._messages)

    def shared(self, index: int, messages: Mapping[int, bytes]) -> None:
        """Take in a client's step-1 messages: one for each of its neighbours."""
        self._during(_Phase.SHARING, index, index in self._boxes, index in self._messages)
        if set(messages) != set(self._near(index)):
            raise refuse("share recipients", f"client {index} did not share with all its peers")
        for peer, message in messages.items():
            Share.parse(message, index, peer, self._parameters)
        self._boxes[index] = {peer: bytes(message) for peer, message in messages.items()}

    def _near(self, index: int) -> tuple[int, ...]:
        members, degree = self._messages.keys(), self._parameters.neighbours
        return neighbours(self._key_context, self._beacon, members, index, degree)

    @property
    def parameters(self) -> RoundParameters:
        """The agreement, as far as it is known."""
        return self._parameters

    @property
    def _context(self) -> bytes:
        return self._parameters.context()

    def bind(self, model_hash: bytes) -> None:
        """Say, once all keys are made ahead, which model the round is for; once.

        Raises
        ------
        ProtocolError
            If the round has a model.
        CohortError
            If too few clients have shared. The round is over.
        """
        self._end(_Phase.SHARING, len(self._boxes), self._parameters.floor)
        self._parameters = self._parameters.bind(model_hash)

    def inbox(self, index: int) -> dict[int, bytes]:
        """End the phase and return what the clients that shared have sealed for one of them."""
        self._end(_Phase.SHARING, len(self._boxes), self._parameters.floor)
        if self._phase > _Phase.UPLOADING:
            raise refuse("step order", "the shares were passed on and are not kept any longer")
        if index not in self._boxes:
            raise refuse("membership", f"client {index} did not share")
        near = self._near(index)
        return {peer: self._boxes[peer][index] for peer in near if peer in self._boxes}

    def uploaded(self, index: int, message: bytes) -> None:
        """Check a client's masked vector and add it to the sum; the message is not kept."""
        self._accepts_upload(index)
        upload = Upload.parse(message, index, self._parameters)
        self._verify_upload(index, words_digest(upload.words), upload.signature)
        if self._sum is None:
            self._sum = self._parameters.zeros()
        np.add(self._sum, upload.vector(self._parameters), out=self._sum)
        self._uploaded.add(index)

    def _accepts_upload(self, index: int) -> None:
        self._during(_Phase.UPLOADING, index, index in self._uploaded, index in self._boxes)

    def _verify_upload(self, index: int, content: bytes, signature: bytes) -> None:
        fields = transcript.upload(self._context, self._beacon, index, content)
        verify(self._parameters.roster[index], signature, index, transcript.UPLOAD, *fields)

    def survivors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """End the phase and return who shared and who of them uploaded, both ascending.

        What clients sealed for one another is dropped; ``inbox`` gives nothing any more.
        """
        self._end(_Phase.UPLOADING, len(self._uploaded), self._parameters.floor)
        for box in self._boxes.values():  # passed on by now; those of the next round need the room
            box.clear()
        return tuple(sorted(self._boxes)), tuple(sorted(self._uploaded))

    def signed(self, index: int, message: bytes) -> None:
        """Take in a survivor's signature over the two sets."""
        self._during(_Phase.CONSENTING, index, index in self._consents, index in self._uploaded)
        consent = Consent.parse(message, index, self._parameters)
        fields = transcript.survivors(
            self._context, self._beacon, self._boxes.keys(), self._uploaded
        )
        verify(
            self._parameters.roster[index],
            consent.signature,
            index,
            transcript.SURVIVORS,
            *fields,
        )
        self._consents[index] = bytes(message)

    def signatures(self) -> dict[int, bytes]:
        """End the phase and return the signatures, to be sent to each that signed."""
        self._end(_Phase.CONSENTING, len(self._consents), self._parameters.threshold)
        return dict(self._consents)

    def answered(self, index: int, message: bytes) -> None:
        """Take in a survivor's shares."""
        self._during(_Phase.ANSWERING, index, index in self._answers, index in self._consents)
        answer = Answer.parse(message, index, self._parameters)
        fields = transcript.answer(self._context, self._beacon, index, answer.fields())
        verify(self._parameters.roster[index], answer.signature, index, transcript.ANSWER, *fields)
        kinds = {peer: kind for peer, (kind, _) in answer.shares.items()}
        wanted = {
            peer: Secret.SELF_MASK if peer in self._uploaded else Secret.PAIR_KEY
            for peer in (index, *self._near(index))
            if peer in self._boxes
        }
        if kinds != wanted:
            raise refuse(
                "answer content", f"client {index} did not give one due share for every peer"
            )
        self._answers[index] = {peer: value for peer, (_, value) in answer.shares.items()}

    def finish(self) -> npt.NDArray[Any]:
        """Take the masks off and return the sum, shape ``[dimension]``; once.

        Raises
        ------
        ProtocolError
            If a rebuilt secret is not the one committed to. The round is over.
        CohortError
            If fewer than ``threshold`` clients answered, or too few of the neighbours of one. The
            round is over.
        """
        keys, signs = self._masks()
        total, self._sum = self._sum, None
        if total is None:
            raise refuse("step order", "the sum was handed out before")
        add_masks(total, keys, signs)
        return total

    def _masks(self) -> tuple[list[bytes], list[int]]:
        """End the round and return keys and signs of the masks to take off."""
        self._end(_Phase.ANSWERING, len(self._answers), self._parameters.threshold)
        try:
            return remaining_masks(
                parameters=self._parameters,
                beacon=self._beacon,
                adverts=self._adverts,
                shared=self._boxes.keys(),
                survivors=self._uploaded,
                answers=self._answers,
            )
        except ProtocolError:
            self._fail()
            raise
