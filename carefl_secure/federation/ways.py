"""From a cohort to its way of summing: the one place that tells the modes apart."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.federation.cohort import Cohort
from carefl_secure.federation.directory import Directory
from carefl_secure.federation.exchange import Exchange
from carefl_secure.federation.messages import pack
from carefl_secure.federation.planning import RunPlan
from carefl_secure.federation.sum_additive import AdditiveClientSum, AdditiveServerSum
from carefl_secure.federation.sum_committee import CommitteeClientSum, CommitteeServerSum
from carefl_secure.federation.sum_encrypted import (
    CkksClientSum,
    EncryptedClientSum,
    EncryptedServerSum,
    read_key,
)
from carefl_secure.federation.sum_peer import PeerClientSum, PeerServerSum
from carefl_secure.federation.summing import ClientSum, ServerSum
from carefl_secure.noise import KeySource
from carefl_secure.secagg import (
    AdditiveClient,
    CkksClient,
    CommitteeClient,
    EncryptedClient,
    EncryptedParameters,
    PeerClient,
    PeerServer,
)

__all__ = ["ClientSums", "server_sum"]


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

    def begin(self, number: int, model_hash: bytes, key: bytes = b"") -> ClientSum:
        """Return the client's part in a new round.

        Parameters
        ----------
        number : int
            Number of the round.
        model_hash : bytes
            Hash of the adapter.
        key : bytes, optional
            The key holder's message, in encrypted rounds.

        Raises
        ------
        ProtocolError
            When the key is not the key holder's own for this round.
        """
        plan, cohort, mine = self._plan, self._cohort, (self._index, self._identity, self._keys)
        if cohort.aggregation == "committee":
            committee = cohort.committee_parameters(plan, number, model_hash)
            return CommitteeClientSum(CommitteeClient(committee, *mine), committee)
        if cohort.encryption == "additive":
            additive = cohort.additive_parameters(plan, number, model_hash)
            return AdditiveClientSum(AdditiveClient(additive, *mine), additive)
        if cohort.aggregation == "encrypt":
            checked = read_key(key, cohort, plan, number, model_hash)
            agreed = checked.parameters
            if isinstance(agreed, EncryptedParameters):
                return EncryptedClientSum(EncryptedClient(agreed, *mine), checked, key)
            return CkksClientSum(CkksClient(agreed, *mine), checked, key)
        parameters = cohort.round_parameters(plan, number, model_hash)
        return PeerClientSum(PeerClient(parameters, *mine), parameters)

    def restore(self, saved: bytes, number: int, model_hash: bytes) -> ClientSum:
        """Go on from what `ClientSum.save` returned.

        Raises
        ------
        ProtocolError
            When it was changed, or belongs to another client or round.
        """
        plan, cohort, identity, keys = self._plan, self._cohort, self._identity, self._keys
        if cohort.encryption == "additive":
            additive = cohort.additive_parameters(plan, number, model_hash)
            restored = AdditiveClient.restore(saved, identity, additive, keys)
            return AdditiveClientSum(restored, additive)
        if cohort.aggregation == "encrypt":
            kind = CkksClientSum if cohort.encryption == "ckks" else EncryptedClientSum
            return kind.restore(saved, identity, cohort, plan, number, model_hash, keys)
        parameters = cohort.round_parameters(plan, number, model_hash)
        client = PeerClient.restore(saved, identity, parameters, keys)
        return PeerClientSum(client, parameters)


def server_sum(
    plan: RunPlan,
    cohort: Cohort,
    exchange: Exchange,
    directory: Directory,
    number: int,
    model_hash: bytes,
) -> ServerSum:
    """Return the server's part in one round.

    Parameters
    ----------
    plan : RunPlan
        The agreed plan.
    cohort : Cohort
        Decides the way of summing.
    exchange : Exchange
        The wire of this round.
    directory : Directory
        Which node is who; kept over the run.
    number : int
        Number of the round.
    model_hash : bytes
        Hash of the adapter.
    """
    told: Mapping[str, int | bytes] = {"round": number, "plan": plan.hash()}
    hello = {**told, "model": model_hash}
    if cohort.aggregation == "committee":
        committee = cohort.committee_parameters(plan, number, model_hash)
        return CommitteeServerSum(exchange, pack(**hello), told, committee, directory)
    if cohort.encryption == "additive":
        additive = cohort.additive_parameters(plan, number, model_hash)
        return AdditiveServerSum(exchange, pack(**hello), additive, plan.encoding.bits)
    if cohort.aggregation == "encrypt":
        return EncryptedServerSum(exchange, hello, plan, cohort, directory, number, model_hash)
    parameters = cohort.round_parameters(plan, number, model_hash)
    return PeerServerSum(exchange, pack(**hello), PeerServer(parameters), parameters)
