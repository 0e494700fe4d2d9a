"""The helpers of a run: committee members and the key holder.

They hold no records and see no client's vector. A helper takes part in no round twice, and refuses
by raising an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import Party
from carefl_secure.noise import KeySource
from carefl_secure.secagg import CommitteeMember, KeyHolder
from carefl_secure.secagg.primitives.crypto import sign

__all__ = ["KEY_LABEL", "Helper", "HolderSession", "MemberSession"]

KEY_LABEL = b"round key"
"""What the key holder signs its key for a round under."""


class Helper(ABC):
    """Common base of member and key holder: one plan, rounds in order.

    ``index`` is its place among the helpers; plan and cohort are its own copies.
    """

    def __init__(
        self, index: int, identity: Ed25519PrivateKey, plan: RunPlan, cohort: Cohort
    ) -> None:
        if cohort.helpers[index] != identity.public_key().public_bytes_raw():
            raise ProtocolError(
                f"helper {index} does not hold the key that the cohort names for it; "
                "compare the cohort with the helper's key file"
            )
        self.index = index
        self._identity = identity
        self._plan = plan
        self._cohort = cohort
        self._round = -1

    def _begin(self, number: int, plan_hash: bytes) -> None:
        self.close()
        self._check(number, plan_hash)
        self._round = number

    def _check(self, number: int, plan_hash: bytes) -> None:
        if plan_hash != self._plan.hash():
            raise ProtocolError("the server follows another privacy plan; compare the run plans")
        if number <= self._round:
            raise ProtocolError(
                f"round {number} comes after round {self._round}; a round is never repeated"
            )

    @property
    def party(self) -> Party:
        """What this helper is called in a refusal."""
        return "key holder" if self._cohort.key_holder is not None else "committee member"

    @abstractmethod
    def close(self) -> None:
        """Erase the secrets of the round in progress, if there is one."""


class MemberSession(Helper):
    """A committee member for the length of one run.

    Guarantees
    ----------
    In a round it gives one sum of masks, over one list of at least ``plan.privacy.min_survivors``
    clients that every other member signed too; it is sent nothing that depends on a record but the
    envelopes' seeds. One honest member is enough; with ``cohort.config.dropout_tolerance = s``
    it also gives, once, its shares of the seeds of at most s lost members, and ``2 s + 1`` honest
    members are needed.
    """

    def __init__(
        self,
        index: int,
        identity: Ed25519PrivateKey,
        plan: RunPlan,
        cohort: Cohort,
        keys: KeySource,
    ) -> None:
        super().__init__(index, identity, plan, cohort)
        self._keys = keys
        self._member: CommitteeMember | None = None
        self._next: CommitteeMember | None = None
        self._next_number = -1

    def announce(self, number: int, plan_hash: bytes) -> bytes:
        """Begin a round: make its key and return the public half, signed.

        Raises ProtocolError when the round is not new or the plan is another one.
        """
        self._begin(number, plan_hash)
        self._member = self._fresh(number)
        return self._member.announce()

    def _fresh(self, number: int) -> CommitteeMember:
        parameters = self._cohort.committee_parameters(self._plan, number)
        return CommitteeMember(parameters, self.index, self._identity, self._keys)

    def announce_prefetch(self, number: int, plan_hash: bytes) -> bytes:
        """Make a key for a later round during this one; return its public half, signed.

        Raises ProtocolError when that was not agreed, the round is not new, or the plan differs.
        """
        if not self._cohort.prefetches:
            raise ProtocolError(
                "key prefetch: the server asks for a key of a later round, which is not agreed; "
                "compare federation.key_prefetch"
            )
        self._check(number, plan_hash)
        if number <= self._next_number:
            raise ProtocolError(f"key prefetch: a key for round {number} was shown before")
        self._drop_next()
        self._next, self._next_number = self._fresh(number), number
        return self._next.announce()

    def open(
        self,
        number: int,
        plan_hash: bytes,
        model_hash: bytes,
        announcements: Mapping[int, bytes],
        listing: bytes,
    ) -> bytes:
        """Check the list of clients, open their envelopes and sign what was found.

        A round whose key was prefetched begins here, and the one in progress ends. The first call
        binds the key to the model. ProtocolError without a key for this round or under another
        plan.
        """
        if self._member is None or number != self._round:
            self._begin_prefetched(number, plan_hash)
        member = self._open()
        if not member.parameters.model_hash:
            member.bind(model_hash)
        elif member.parameters.model_hash != model_hash:
            raise ProtocolError("the round is bound to another model; a key serves one model")
        return member.open(announcements, listing)

    def _begin_prefetched(self, number: int, plan_hash: bytes) -> None:
        self._check(number, plan_hash)
        if self._next is None or number != self._next_number:
            raise ProtocolError(f"key prefetch: there is no key for round {number}")
        self._end()
        self._member, self._next, self._round = self._next, None, number

    def answer(self, openings: Mapping[int, bytes]) -> bytes:
        """Give the one sum of masks, then forget the round, unless members may still be lost."""
        answer = self._open().answer(openings)
        if not self._cohort.config.dropout_tolerance:
            self._end()
        return answer

    def consent(self, lost: Collection[int]) -> bytes:
        """Say once which members are lost."""
        return self._open().consent(lost)

    def recover(self, consents: Mapping[int, bytes]) -> bytes:
        """Give the shares of the lost members' seeds, then forget the round."""
        shares = self._open().recover(consents)
        self._end()
        return shares

    def close(self) -> None:
        """Erase the secrets of the round in progress and the prefetched key."""
        self._end()
        self._drop_next()

    def _end(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def _open(self) -> CommitteeMember:
        if self._member is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        return self._member


class HolderSession(Helper):
    """The key holder for the length of one run.

    Guarantees
    ----------
    It makes a key for every round, signs it together with the round's whole agreement, opens one
    ciphertext sum with it and destroys it. It is sent that sum and nothing else that clients made;
    what it decrypts still carries the peers' masks.
    """

    def __init__(
        self, index: int, identity: Ed25519PrivateKey, plan: RunPlan, cohort: Cohort
    ) -> None:
        super().__init__(index, identity, plan, cohort)
        self._key: KeyHolder | None = None

    def key(self, number: int, plan_hash: bytes) -> bytes:
        """Begin a round: make its key pair and return a signature and the public key.

        ``Sign("round key"; kctx) || public key``, where kctx holds the key's hash, the round, the
        plan and all rosters. ProtocolError when the round is not new or the plan differs.
        """
        self._begin(number, plan_hash)
        self._key = KeyHolder(self._identity)
        parameters = self._cohort.encrypted_parameters(self._plan, number, self._key.public_digest)
        return sign(self._identity, KEY_LABEL, parameters.key_context()) + self._key.public_key

    def open(self, model_hash: bytes, message: bytes) -> bytes:
        """Decrypt the one sum of the round, then destroy the key."""
        if self._key is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        parameters = self._cohort.encrypted_parameters(
            self._plan, self._round, self._key.public_digest, model_hash
        )
        opened = self._key.open(parameters, message)
        self.close()
        return opened

    def close(self) -> None:
        """Drop the key of the round in progress."""
        self._key = None
