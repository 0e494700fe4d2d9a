"""From a cohort to the server's way of summing; `ways` has a client's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from carefl_secure.federation.aggregation.base import ServerSum
from carefl_secure.federation.aggregation.committee import (
    AheadCommitteeServerSum,
    CommitteeServerSum,
)
from carefl_secure.federation.aggregation.encrypted import EncryptedServerSum
from carefl_secure.federation.aggregation.pairwise import AheadPairwiseServerSum, PairwiseServerSum
from carefl_secure.federation.aggregation.prefetch import CommitteeAhead, KeysAhead, PeersAhead
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import pack
from carefl_secure.federation.transport.node_directory import Directory
from carefl_secure.secagg import CommitteeServer, PairwiseServer

__all__ = ["ServerSums"]


class ServerSums:
    """Makes the server's part in the sums of a run, and keeps what is made ahead between them.

    Parameters
    ----------
    plan : RunPlan
        The agreed plan.
    cohort : Cohort
        Decides the way of summing.
    directory : Directory
        Which node is who.
    last : int
        Number of the last round, after which no keys are made.
    folder : Path, optional
        On a disk with room for one round's uploads, where a way of summing needs them twice.
    """

    def __init__(
        self,
        plan: RunPlan,
        cohort: Cohort,
        directory: Directory,
        last: int,
        folder: Path | None = None,
    ) -> None:
        self._plan = plan
        self._cohort = cohort
        self._directory = directory
        self._last = last
        self._folder = folder
        self._ahead: KeysAhead | None = None

    def begin(self, exchange: Exchange, number: int, model_hash: bytes) -> ServerSum:
        """Return the server's part in one round.

        It begins with keys that were made on the way of the round before, if there are enough;
        else they are made in it.

        Parameters
        ----------
        exchange : Exchange
            The wire of this round.
        number : int
            Number of the round.
        model_hash : bytes
            Hash of the adapter.
        """
        plan, cohort = self._plan, self._cohort
        made = self._made(number)
        told = self._told(number)
        hello = {**told, "model": model_hash}
        if cohort.aggregation == "committee":
            directory, folder = self._directory, self._folder
            rides = self._committee_ahead(exchange, number + 1)
            if isinstance(made, CommitteeAhead):
                return AheadCommitteeServerSum(exchange, made, model_hash, directory, folder, rides)
            committee = cohort.committee_parameters(plan, number, model_hash)
            server = CommitteeServer(committee)
            return CommitteeServerSum(
                exchange, pack(**hello), told, server, directory, folder, rides
            )
        if cohort.aggregation == "encrypted":
            return EncryptedServerSum(
                exchange, hello, plan, cohort, self._directory, number, model_hash
            )
        ahead = self._peers_ahead(exchange, number + 1)
        if isinstance(made, PeersAhead):
            return AheadPairwiseServerSum(exchange, made, model_hash, ahead)
        parameters = cohort.round_parameters(plan, number, model_hash)
        return PairwiseServerSum(exchange, pack(**hello), PairwiseServer(parameters), ahead)

    def _told(self, number: int) -> Mapping[str, int | bytes]:
        return {"round": number, "plan": self._plan.hash()}

    def _made(self, number: int) -> KeysAhead | None:
        """Return the keys made for exactly this round, if they are enough; keep them no longer."""
        made, self._ahead = self._ahead, None
        fits = made is not None and made.ready and made.told["round"] == number
        return made if fits else None

    def _peers_ahead(self, exchange: Exchange, number: int) -> PeersAhead | None:
        if not self._cohort.rides or number > self._last:
            return None
        parameters = self._cohort.ahead_parameters(self._plan, number)
        ahead = PeersAhead(exchange, self._told(number), PairwiseServer(parameters))
        self._ahead = ahead
        return ahead

    def _committee_ahead(self, exchange: Exchange, number: int) -> CommitteeAhead | None:
        if not self._cohort.rides or number > self._last:
            return None
        parameters = self._cohort.ahead_committee_parameters(self._plan, number)
        server, told = CommitteeServer(parameters), self._told(number)
        ahead = CommitteeAhead(exchange, told, server, self._directory)
        self._ahead = ahead
        return ahead
