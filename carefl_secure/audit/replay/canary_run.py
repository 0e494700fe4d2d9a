"""A short run of the real federation on canaries: records of known clipped gradient, each along its own coordinate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.replay.recording import Batch, Rehearsal, play
from carefl_secure.config import Config
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter
from carefl_secure.runs.plan_from_config import plan_with

_MOST_CLIENTS = 16
_MOST_ROUNDS = 100
_EXPECTED = 60  # records per client and round, so that the sampler can be judged
_MOST_RECORDS = 20_000

_Vector = npt.NDArray[np.float64]
_Adapter = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int64]


class KnownTask:
    """Rows of a matrix as clipped gradients (then zero), a person each; ``observe(number, indices)`` sees samples."""

    most_records = 1

    def __init__(
        self, gradients: _Vector, records: int, observe: Callable[[int, _Indices], None] | None = None
    ) -> None:
        self._gradients = gradients[:records]
        self.dimension = int(gradients.shape[1])
        self.records = self.persons = records
        self._observe = observe

    def clipped_sum(self, adapter: _Adapter, indices: _Indices, number: int) -> _Vector:
        """Return the sum of the rows."""
        if self._observe is not None:
            self._observe(number, indices.copy())
        total: _Vector = self._gradients[indices[indices < len(self._gradients)]].sum(axis=0)
        return total

    def clipped_person_sum(self, adapter: _Adapter, persons: _Indices, number: int) -> _Vector:
        """Return the sum of the rows."""
        return self.clipped_sum(adapter, persons, number)

    def trainable_entries(self, number: int) -> npt.NDArray[np.bool_]:
        """Return that everything trains."""
        return np.ones(self.dimension, np.bool_)

    def gradient(self, adapter: _Adapter, indices: _Indices, number: int) -> _Vector:
        """Return the mean of the rows."""
        return self.clipped_sum(adapter, indices, number) / len(indices)


def plan_like(config: Config, dimension: int, records: int, rounds: int | None = None) -> RunPlan:
    """Plan a run under a configuration, for another length of the adapter.

    At most 16 clients and 100 rounds are rehearsed, with the noise planned for these, so that the
    same epsilon is spent, and without stragglers, whose noise is less than a round's. Delta is
    lowered where more records are rehearsed than it fits. The clipping norm is fixed, as the mechanism is the same.
    """
    privacy, federation, simulation = config.privacy, config.federation, config.simulation
    clients = min(federation.clients, _MOST_CLIENTS)
    fewer: dict[str, object] = {"clients": clients}
    colluders = privacy.max_colluders
    if clients < federation.clients:
        fewer["min_survivors"], colluders = "auto", min(1, colluders)
    fewer["rounds"] = min(federation.rounds if rounds is None else rounds, _MOST_ROUNDS)
    delta = min(privacy.delta, 0.9 / (records * clients))
    private = {"delta": delta, "max_colluders": colluders, "target_unclipped_quantile": None}
    smaller = config.model_copy(
        update={
            "federation": federation.model_copy(update=fewer),
            "privacy": privacy.model_copy(update=private),
            "simulation": simulation.model_copy(update={"stragglers": 0.0}),
        }
    )
    return plan_with(smaller, records * clients, dimension)


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
    rate = config.with_sample_rate().sample_rate
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
        KnownTask(
            _unit_rows(np.flatnonzero(member & (np.arange(canaries) % clients == i)), plan),
            0 if empty else records,
            lambda number, drawn, i=i: log.append(Batch(number, i, drawn)),  # type: ignore[misc]
        )
        for i in range(clients)
    ]
    steady = plan.privacy.bands == 1  # what rounds take back is told apart only while nobody drops out
    rehearsal = play(config, key_source, plan, tasks, aggregation=aggregation, dropout=steady, reporter=reporter)
    return dataclasses.replace(rehearsal, batches=tuple(log), records=0 if empty else records, member=member)


def _unit_rows(coordinates: npt.NDArray[np.int64], plan: RunPlan) -> npt.NDArray[np.float64]:
    """Return one gradient along each coordinate, as long as clipping allows."""
    rows = np.zeros((len(coordinates), plan.encoding.dimension))
    rows[np.arange(len(coordinates)), coordinates] = plan.privacy.clipping_norm
    return rows
