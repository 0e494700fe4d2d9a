"""From a cohort to a client's way of summing; `server_ways` has the server's."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSum
from carefl_secure.federation.aggregation.committee import CommitteeClientSum
from carefl_secure.federation.aggregation.encrypted import EncryptedClientSum, read_key
from carefl_secure.federation.aggregation.pairwise import PairwiseClientSum
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource
from carefl_secure.secagg import (
    AheadParameters,
    CommitteeClient,
    EncryptedClient,
    PairwiseClient,
)
from carefl_secure.secagg.primitives.crypto import derive, raw_identity

__all__ = ["ClientSums"]


class ClientSums:
    """Makes one client's part in the sums of a run.

    Parameters
    ----------
    plan : RunPlan
        The agreed plan.
    cohort : Cohort
        Decides the way of summing.
    index : int
        The client's place in the roster.
    identity : Ed25519PrivateKey
        Its long-lived key.
    keys : KeySource
        Fresh keys.
    """

    def __init__(
        self,
        plan: RunPlan,
        cohort: Cohort,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        self._plan = plan
        self._cohort = cohort
        self._index = index
        self._identity = identity
        self._keys = keys

    def begin(
        self, number: int, model_hash: bytes, key: bytes = b"", *, ahead: bool = False
    ) -> ClientSum:
        """Return the client's part in a new round.

        Parameters
        ----------
        number : int
            Number of the round.
        model_hash : bytes
            Hash of the adapter.
        key : bytes, optional
            The key holder's message, in encrypted rounds.
        ahead : bool, optional
            Whether the committee's keys were made before the model was known.

        Raises
        ------
        ProtocolError
            When the key is not the key holder's own for this round.
        """
        plan, cohort, mine = self._plan, self._cohort, (self._index, self._identity, self._keys)
        if cohort.aggregation == "committee":
            committee = (
                cohort.ahead_committee_parameters(plan, number).bind(model_hash)
                if ahead
                else cohort.committee_parameters(plan, number, model_hash)
            )
            return CommitteeClientSum(CommitteeClient(committee, *mine), committee)
        if cohort.aggregation == "encrypted":
            checked = read_key(key, cohort, plan, number, model_hash)
            return EncryptedClientSum(EncryptedClient(checked.parameters, *mine), checked, key)
        parameters = cohort.round_parameters(plan, number, model_hash)
        return PairwiseClientSum(PairwiseClient(parameters, *mine))

    def restore(self, saved: bytes, number: int, model_hash: bytes) -> ClientSum:
        """Go on from what `ClientSum.save` returned.

        Raises
        ------
        ProtocolError
            When it was changed, or belongs to another client or round.
        """
        plan, cohort, identity, keys = self._plan, self._cohort, self._identity, self._keys
        if cohort.aggregation == "encrypted":
            return EncryptedClientSum.restore(
                saved, identity, cohort, plan, number, model_hash, keys
            )
        parameters = cohort.round_parameters(plan, number, model_hash)
        return PairwiseClientSum(PairwiseClient.restore(saved, identity, parameters, keys))

    def ahead(self, number: int) -> ClientSum:
        """Return the client's part in a round whose model is not known yet.

        Raises
        ------
        ProtocolError
            When in this way of summing no client makes keys ahead.
        """
        parameters = self._ahead_parameters(number)
        return PairwiseClientSum(
            PairwiseClient(parameters, self._index, self._identity, self._keys)
        )

    def restore_ahead(self, saved: bytes, number: int, model_hash: bytes = b"") -> ClientSum:
        """Go on from what `ClientSum.save` returned, in a round whose keys were made ahead.

        Raises
        ------
        ProtocolError
            When it was changed, or belongs to another client, round or model.
        """
        parameters = self._ahead_parameters(number)
        if model_hash:
            parameters = parameters.bind(model_hash)
        return PairwiseClientSum(
            PairwiseClient.restore(saved, self._identity, parameters, self._keys)
        )

    def stamp(self, content: bytes) -> bytes:
        """Return 32 bytes that nobody but this client, in this run, can give for some content."""
        place = (self._cohort.run, self._plan.hash(), content)
        return derive(raw_identity(self._identity), b"saved session", *place)

    def _ahead_parameters(self, number: int) -> AheadParameters:
        if self._cohort.aggregation != "pairwise":
            raise ProtocolError(
                "keys ahead: no client makes any in this way of summing; compare "
                "federation.aggregation"
            )
        return self._cohort.ahead_parameters(self._plan, number)
