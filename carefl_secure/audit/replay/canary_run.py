"""A short run of the real federation on canaries.

Only the model is replaced, by records of known clipped gradient: a canary points along one
coordinate of its own, with the clipping norm as its length; a filler's gradient is zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.replay.recording import Batch, Rehearsal, play
from carefl_secure.config import Config
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.plan.local_steps import LocalPlan
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter
from carefl_secure.runs.plan_from_config import UNCLIPPED, local_plan

__all__ = ["plan_like", "punctual", "rehearse"]

_MOST_CLIENTS = 16
_MOST_ROUNDS = 100
_EXPECTED = 60  # records per client and round, so that the sampler can be judged
_MOST_RECORDS = 20_000


class _CanaryTask:
    """A client whose first records are canaries and whose others have no gradient."""

    most_records = 1

    def __init__(
        self,
        index: int,
        canaries: npt.NDArray[np.int64],
        records: int,
        plan: RunPlan,
        log: list[Batch],
    ) -> None:
        self._index = index
        self._canaries = canaries
        self._records = records
        self._norm = plan.privacy.clipping_norm
        self._dimension = plan.encoding.dimension
        self._log = log

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def records(self) -> int:
        return self._records

    def clipped_sum(
        self, adapter: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        self._log.append(Batch(number, self._index, indices.copy()))
        total = np.zeros(self._dimension)
        total[self._canaries[indices[indices < len(self._canaries)]]] = self._norm
        return total

    @property
    def persons(self) -> int:
        """Every record is a person of its own."""
        return self._records

    def clipped_person_sum(
        self, adapter: npt.NDArray[np.float32], persons: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        return self.clipped_sum(adapter, persons, number)

    def trainable_entries(self, number: int) -> npt.NDArray[np.bool_]:
        return np.ones(self._dimension, np.bool_)

    def gradient(
        self, adapter: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        total = np.zeros(self._dimension)
        total[self._canaries[indices[indices < len(self._canaries)]]] = self._norm / len(indices)
        return total


def punctual(local: LocalPlan | None) -> LocalPlan | None:
    """Return local steps without stragglers, whose noise is less than a round's."""
    return None if local is None else dataclasses.replace(local, stragglers=0.0)


def plan_like(config: Config, dimension: int, records: int, rounds: int | None = None) -> RunPlan:
    """Plan a run under a configuration, for another length of the adapter.

    At most 16 clients and 100 rounds are rehearsed, with the noise planned for these, so that the
    same epsilon is spent. Delta is lowered where more records are rehearsed than it fits.
    """
    private, federation = config.privacy, config.federation
    clients = min(federation.clients, _MOST_CLIENTS)
    whole = clients == federation.clients
    protected = private.unit != "none"
    return plan_run(
        PlanRequest(
            unit=private.unit,
            trust=private.trust,
            records_per_person=private.records_per_person,
            local=punctual(local_plan(config)),
            dimension=dimension,
            clients=clients,
            rounds=min(federation.rounds if rounds is None else rounds, _MOST_ROUNDS),
            public_records=records * clients,
            sample_rate=1.0 if private.unit == "client" else private.sample_rate,
            clipping_norm=private.clipping_norm if protected else UNCLIPPED,
            delta=min(private.delta, 0.9 / (records * clients)),
            target_epsilon=private.epsilon if protected else None,
            min_survivors=federation.min_survivors if whole else None,
            max_colluders=private.max_colluders if whole else min(1, private.max_colluders),
            normalise=private.normalise and protected,
        )
    )


def rehearse(
    config: Config,
    key_source: Callable[[int], KeySource],
    *,
    canaries: int = 1000,
    plan: RunPlan | None = None,
    empty: bool = False,
    seed: int = 0,
    aggregation: Aggregation | None = None,
    reporter: Reporter | None = None,
) -> Rehearsal:
    """Run the configured federation on canaries, each included by a coin flip.

    Canary j, if included, is a record of client ``j mod n``. ``key_source`` gives the clients'
    keys, as in the run under audit; ``plan`` is by default :func:`plan_like` with as many
    coordinates as canaries. ``empty`` leaves all records out, so that each sum is noise only;
    ``seed`` is of the coins alone. ``aggregation`` is as configured by default.
    """
    rate = config.privacy.sample_rate
    among = min(config.federation.clients, _MOST_CLIENTS)
    wanted = math.ceil(max(canaries, 1) / among)
    fitting = int(0.9 / config.privacy.delta / among)
    records = max(wanted, min(_MOST_RECORDS, math.ceil(_EXPECTED / rate), fitting))
    plan = plan_like(config, max(canaries, 64), records) if plan is None else plan
    clients = plan.privacy.clients
    # The coins are the experiment's own randomness, not a secret of the protocol.
    member = np.random.default_rng([seed, 0xCA]).random(canaries) < 0.5
    log: list[Batch] = []
    tasks = [
        _CanaryTask(
            i,
            np.flatnonzero(member & (np.arange(canaries) % clients == i)),
            0 if empty else records,
            plan,
            log,
        )
        for i in range(clients)
    ]
    rehearsal = play(config, key_source, plan, tasks, aggregation=aggregation, reporter=reporter)
    return dataclasses.replace(
        rehearsal, batches=tuple(log), records=0 if empty else records, member=member
    )
