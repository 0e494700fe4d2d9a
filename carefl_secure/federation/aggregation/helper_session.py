"""The parties beside clients and server: committee members and the key holder, for a whole run.

They hold no records and see no client's vector. Like a client, a helper follows its own copy of
plan and cohort, takes part in no round twice, and says no by an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.encrypted import sign_key
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.error_codes import Party
from carefl_secure.noise import KeySource
from carefl_secure.secagg import CommitteeMember, EncryptedParameters, KeyHolder

__all__ = ["Helper", "HolderSession", "MemberSession"]


class Helper(ABC):
    """What members and key holder have in common: one plan, rounds in order.

    Parameters
    ----------
    index : int
        Place among the helpers of the cohort.
    identity : Ed25519PrivateKey
        Its long-lived key; the public half stands in the cohort.
    plan : RunPlan
        What the parties agreed on, held by the helper itself.
    cohort : Cohort
        Run, rosters and base model, likewise.
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

    Parameters
    ----------
    index, identity, plan, cohort
        As in `Helper`.
    keys : KeySource
        Fresh keys.

    Guarantees
    ----------
    In a round it gives one sum of masks, over one list of at least ``plan.privacy.min_survivors``
    clients that every other member signed too; it is sent nothing that depends on a record but
    the envelopes' seeds. One honest member is enough; with
    ``cohort.committee_dropout_tolerance = s`` it also gives, once, its shares of the seeds of at
    most s lost members, and ``2 s + 1`` honest members are needed.
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

    def announce(self, number: int, model_hash: bytes, plan_hash: bytes) -> bytes:
        """Begin a round: make its key and return the public half, signed.

        Raises
        ------
        ProtocolError
            When the round is not new or the plan is another one.
        """
        self._begin(number, plan_hash)
        parameters = self._cohort.committee_parameters(self._plan, number, model_hash)
        self._member = CommitteeMember(parameters, self.index, self._identity, self._keys)
        return self._member.announce()

    def announce_ahead(self, number: int, plan_hash: bytes) -> bytes:
        """Make and show a key for a later round, whose model is not known yet.

        Raises
        ------
        ProtocolError
            When that was not agreed, the round is not new, or the plan is another one.
        """
        if not self._cohort.rides:
            raise ProtocolError(
                "keys ahead: the server asks for a key of a later round, which is not agreed; "
                "compare federation.key_prefetch"
            )
        self._check(number, plan_hash)
        if number <= self._next_number:
            raise ProtocolError(f"keys ahead: a key for round {number} was shown before")
        self._drop_next()
        parameters = self._cohort.ahead_committee_parameters(self._plan, number)
        self._next = CommitteeMember(parameters, self.index, self._identity, self._keys)
        self._next_number = number
        return self._next.announce()

    def take_up(self, number: int, model_hash: bytes, plan_hash: bytes) -> None:
        """Begin the round whose key was made ahead, with its model; the one in progress ends.

        Raises
        ------
        ProtocolError
            When there is no key for exactly this round, or the plan is another one.
        """
        self._check(number, plan_hash)
        if self._next is None or number != self._next_number:
            raise ProtocolError(f"keys ahead: there is none for round {number}")
        self._next.bind(model_hash)
        self._end()
        self._member, self._next, self._round = self._next, None, number

    def open(self, announcements: Mapping[int, bytes], listing: bytes) -> bytes:
        """Check the list of clients, open their envelopes and sign what was found."""
        return self._open().open(announcements, listing)

    def answer(self, openings: Mapping[int, bytes]) -> bytes:
        """Give the one sum of masks, then forget the round, unless members may still be lost."""
        answer = self._open().answer(openings)
        if not self._cohort.committee_dropout_tolerance:
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
        """Erase the secrets of the round in progress and the key made for the next one."""
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
    ciphertext sum with it and destroys it. It is sent that sum and nothing else that clients
    made; what it decrypts still carries the peers' masks.
    """

    def __init__(
        self, index: int, identity: Ed25519PrivateKey, plan: RunPlan, cohort: Cohort
    ) -> None:
        super().__init__(index, identity, plan, cohort)
        self._key: KeyHolder | None = None
        self._parameters: EncryptedParameters | None = None

    def key(self, number: int, model_hash: bytes, plan_hash: bytes) -> bytes:
        """Begin a round: make its key pair and return the public key, signed.

        Raises
        ------
        ProtocolError
            When the round is not new or the plan is another one.
        """
        self._begin(number, plan_hash)
        self._key = KeyHolder(self._identity)
        self._parameters = self._cohort.encrypted_parameters(
            self._plan, number, model_hash, self._key.public_digest
        )
        return sign_key(self._key.public_key, self._parameters, self._identity)

    def open(self, message: bytes) -> bytes:
        """Decrypt the one sum of the round, then destroy the key."""
        if self._key is None or self._parameters is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        opened = self._key.open(self._parameters, message)
        self.close()
        return opened

    def close(self) -> None:
        """Drop the key of the round in progress."""
        self._key = self._parameters = None
