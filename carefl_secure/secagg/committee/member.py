"""A committee member: opens envelopes, answers once with one vector, forgets."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeySource
from carefl_secure.secagg.committee import messages, transcript
from carefl_secure.secagg.committee.recovery import read_announcements, read_loss, read_opening
from carefl_secure.secagg.primitives import shamir
from carefl_secure.secagg.primitives.crypto import EnvelopeKey, open_envelope, pack, refuse, same, too_few
from carefl_secure.secagg.primitives.framing import masked_words, words_digest
from carefl_secure.secagg.primitives.phases import Participant
from carefl_secure.secagg.primitives.shamir import read_element

MemberPhase = IntEnum("MemberPhase", "NEW ANNOUNCED OPENED ANSWERED CONSENTED RECOVERED CLOSED", start=0)
"""The last step that a member has answered."""


class CommitteeMember(Participant[messages.CommitteeParameters, MemberPhase]):
    """One member's side of a committee round. It never sees a vector of a client.

    ============= ============================================== =================================
    step          checks                                         gives
    ============= ============================================== =================================
    ``announce``                                                 a fresh public key, signed
    ``open``      every client's signature, min_survivors        which envelopes do not open
    ``answer``    all members saw the same list; min_survivors   one sum of masks, once
    ``consent``   no more are lost than tolerated                one statement of who is lost
    ``recover``   all present members said the same              shares of the lost one's seeds
    ============= ============================================== =================================

    The last two are needed only where a member is lost and the round tolerates that. A member that
    restarts has lost its key and counts as lost.

    Raises `ProtocolError` from every step, if a check fails; its text starts with the name of the check. Nothing was
    given then, and the step may be tried again with honest input. Raises `CohortError` if fewer than
    ``parameters.min_survivors`` clients are on the list or left on it.

    Guarantees
    ----------
    An honest member gives one sum over at least ``parameters.min_survivors`` different clients that each signed their
    message in this round, and nothing about any smaller set; if members may be lost, also the shares of as many other
    members' seeds, agreed upon with a quorum. One honest member is enough where none may be lost, even if the server
    shows members different lists or other members sign several: the masks of the clients on one list but not on
    another then stay on the sum.
    """

    FIRST = MemberPhase.NEW
    PARTY = "member"

    def __init__(
        self, parameters: messages.CommitteeParameters, index: int, identity: Ed25519PrivateKey, keys: KeySource
    ) -> None:
        super().__init__(parameters, index, identity, keys)
        self._key: EnvelopeKey | None = None
        self._announcement = b""
        self._transcript_hash = b""
        self._listed = b""
        self._opening = b""
        self._clients: tuple[int, ...] = ()
        self._settled = b""
        self._lost: tuple[int, ...] = ()
        self._contents: dict[int, bytearray] = {}

    def close(self) -> None:
        """Forget every secret and refuse all further steps."""
        self._erase()
        self._phase = MemberPhase.CLOSED

    def _erase(self) -> None:
        self._key = None
        for content in self._contents.values():
            content[:] = bytes(len(content))
        self._contents.clear()

    def announce(self) -> bytes:
        """Make the key of the round and return its signed public half."""
        self._require(MemberPhase.NEW, "announce")
        self._key = EnvelopeKey(self._keys)
        context = self._parameters.key_context()
        fields = transcript.member_key(context, self._index, self._key.public)
        signature = self._sign(transcript.MEMBER_KEY, fields)
        self._announcement = messages.MemberKey(self._key.public, signature).encode(self._index, context)
        self._phase = MemberPhase.ANNOUNCED
        return self._announcement

    def bind(self, model_hash: bytes) -> None:
        """Bind the key to the model of the round, before the envelopes are opened; once."""
        self._require(MemberPhase.ANNOUNCED, "bind")
        super().bind(model_hash)

    def open(self, announcements: Mapping[int, bytes], listing: bytes) -> bytes:
        """Check the list of clients for me, open their envelopes, and sign which do not open."""
        self._require(MemberPhase.ANNOUNCED, "open")
        parameters, context = self._parameters, self._context
        if announcements.get(self._index) != self._announcement:
            raise refuse("own announcement", "the list lacks mine, or holds another in its place")
        _, transcript_hash = read_announcements(announcements, parameters)
        parsed = messages.Listing.parse(listing, self._index, parameters)
        if len(parsed.clients) < parameters.min_survivors:
            raise too_few("submitting", len(parsed.clients), parameters.min_survivors)
        signed = []
        for index, (entry, envelope) in parsed.clients.items():
            fields = entry.fields(context, transcript_hash, index)
            parameters.check_signature(index, entry.signature, transcript.SUBMISSION, fields)
            if not same(hashlib.sha256(envelope).digest(), entry.envelopes[self._index]):
                raise refuse("envelope", f"it is not the one that client {index} signed")
            signed.append(fields)
        contents = {}
        for index, (entry, envelope) in parsed.clients.items():
            content = self._content(transcript_hash, index, envelope)
            if content is not None and self._fits(transcript_hash, index, content, entry.commitments):
                contents[index] = content
        failed = tuple(index for index in parsed.clients if index not in contents)
        listed = transcript.client_list(context, transcript_hash, signed)
        signature = self._sign_statement(transcript.OPENING, transcript_hash, listed, pack(*failed))
        self._transcript_hash, self._listed, self._contents = transcript_hash, listed, contents
        self._clients = tuple(parsed.clients)
        self._opening = messages.Opening(listed, failed, signature).encode(self._index, context)
        self._key = None
        self._phase = MemberPhase.OPENED
        return self._opening

    def _content(self, transcript_hash: bytes, client: int, envelope: bytes) -> bytearray | None:
        if self._key is None:
            raise refuse("step order", "the key of the round is gone")
        info = transcript.envelope_info(self._context, transcript_hash, client, self._index)
        content = open_envelope(self._key, envelope, info)
        if content is None or len(content) != messages.content_bytes(self._parameters):
            return None
        return bytearray(content)

    def _fits(self, transcript_hash: bytes, client: int, content: bytearray, commitments: tuple[bytes, ...]) -> bool:
        """Tell whether an envelope holds the committed seed and shares within the field."""
        seed = content[: messages.SEED_BYTES]
        promised = transcript.commitment(self._context, transcript_hash, client, self._index, seed)
        if not same(promised, commitments[self._index]):
            return False
        try:
            for start in range(messages.SEED_BYTES, len(content), shamir.SHARE_BYTES):
                read_element(bytes(content[start : start + shamir.SHARE_BYTES]))
        except ProtocolError:
            return False
        return True

    def answer(self, openings: Mapping[int, bytes]) -> bytes:
        """Give the sum of masks over the list, without clients whose envelopes failed at any member; once."""
        self._require(MemberPhase.OPENED, "answer")
        parameters, context = self._parameters, self._context
        if openings.get(self._index) != self._opening:
            raise refuse("own opening", "the list lacks mine, or holds another in its place")
        if len(openings) < parameters.quorum:
            raise parameters.lost_members(set(range(parameters.size)) - set(openings))
        left = set(self._clients)
        for member, message in openings.items():
            opening = read_opening(message, member, self._transcript_hash, parameters)
            if not same(opening.listed, self._listed):
                raise refuse("client list", f"member {member} was shown another list than I was")
            left -= set(opening.failed)
        if len(left) < parameters.min_survivors:
            raise too_few("opening", len(left), parameters.min_survivors)
        masks = [
            transcript.mask_key(
                context, self._transcript_hash, client, self._index, self._contents[client][: messages.SEED_BYTES]
            )
            for client in sorted(left)
        ]
        words = masked_words(parameters.zeros(), masks, [1] * len(masks))
        settled = transcript.outcome(context, self._transcript_hash, openings)
        content = settled, words_digest(words)
        signature = self._sign_statement(transcript.MEMBER_ANSWER, self._transcript_hash, *content)
        self._settled, self._clients = settled, tuple(sorted(left))
        self._phase = MemberPhase.ANSWERED
        if not parameters.tolerates(1):
            self._erase()
        return messages.MemberAnswer(settled, words, signature).encode(self._index, context)

    def consent(self, lost: Collection[int]) -> bytes:
        """State once which members never answered; shares are given only if all others agree."""
        self._require(MemberPhase.ANSWERED, "consent")
        gone = set(lost)
        others = set(range(self._parameters.size)) - {self._index}
        if not gone or len(gone) != len(lost) or not gone <= others:
            raise refuse("lost members", "the set is empty, names me, or names no member")
        if not self._parameters.tolerates(len(gone)):
            raise self._parameters.lost_members(gone)
        self._lost = tuple(sorted(gone))
        content = self._settled, pack(*self._lost)
        signature = self._sign_statement(transcript.LOSS, self._transcript_hash, *content)
        self._phase = MemberPhase.CONSENTED
        return messages.Loss(self._settled, self._lost, signature).encode(self._index, self._context)

    def recover(self, consents: Mapping[int, bytes]) -> bytes:
        """Against the consents of all present members, give shares of the lost ones' seeds."""
        self._require(MemberPhase.CONSENTED, "recover")
        parameters = self._parameters
        if set(consents) != set(range(parameters.size)) - set(self._lost):
            raise refuse("loss consents", "not exactly the members that are present consented")
        for member, message in consents.items():
            loss = read_loss(message, member, self._transcript_hash, parameters)
            if not same(loss.settled, self._settled) or loss.lost != self._lost:
                raise refuse("loss consents", f"member {member} agreed to something else than I")
        shares = []
        for gone in self._lost:
            place = gone - (gone > self._index)
            start = messages.SEED_BYTES + place * shamir.SHARE_BYTES
            for client in self._clients:
                shares.append(read_element(bytes(self._contents[client][start : start + shamir.SHARE_BYTES])))
        content = messages.SeedShares(tuple(shares), b"").content()
        signature = self._sign_statement(transcript.SEED_SHARES, self._transcript_hash, self._settled, content)
        self._erase()
        self._phase = MemberPhase.RECOVERED
        return messages.SeedShares(tuple(shares), signature).encode(self._index, self._context)
