"""A short run of the real federation on canaries, with everything written down.

Nothing is imitated: the sessions, the secure sum, the samplers and the strategy are those of the
run under audit, under its configuration. Only the model is replaced, by records whose clipped
gradient is known: record i points along one coordinate of its own, with the clipping norm as its
length, or it is a filler whose gradient is zero.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.views import (
    Heard,
    HolderView,
    MemberView,
    ReleaseView,
    TranscriptView,
)
from carefl_secure.config import Config
from carefl_secure.federation.cohort import Aggregation
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.grid import FIRST_NODE
from carefl_secure.federation.planning import LocalPlan, RunPlan, plan_run
from carefl_secure.federation.rounds import run_federation
from carefl_secure.federation.setup import UNCLIPPED, local_plan
from carefl_secure.federation.task import LocalTask
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter, SilentReporter

__all__ = ["Batch", "Rehearsal", "plan_like", "play", "punctual", "rehearse"]

_MOST_CLIENTS = 16
_MOST_ROUNDS = 100
_EXPECTED = 60  # records per client and round, so that the sampler can be judged
_MOST_RECORDS = 20_000


@dataclass(frozen=True)
class Batch:
    """What one client drew in one round; only the auditor knows it."""

    round: int
    client: int
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rehearsal:
    """All that happened, secrets included. Attacks get the views, the auditor keeps the rest.

    Parameters
    ----------
    plan : RunPlan
    messages : tuple of Heard
    sums : ndarray of float64, shape [rounds, D]
        Opened sums in units of the clipping norm.
    survivors : tuple of int
        Of each round.
    batches : tuple of Batch
    records : int
        That each client held.
    member : ndarray of bool, shape [canaries]
        The coins.
    seed : int
        Of the run.
    aggregation : {"peer", "committee", "encrypt"}
        How its rounds summed.
    """

    plan: RunPlan
    messages: tuple[Heard, ...]
    sums: npt.NDArray[np.float64]
    survivors: tuple[int, ...]
    batches: tuple[Batch, ...]
    records: int
    member: npt.NDArray[np.bool_]
    seed: int
    aggregation: Aggregation = "peer"

    def transcript(self) -> TranscriptView:
        """Return what the server sees."""
        privacy, encoding = self.plan.privacy, self.plan.encoding
        return TranscriptView(
            self.messages,
            privacy.clients,
            encoding.bits,
            self.seed,
            self.aggregation,
            encoding.padded,
        )

    def members(self) -> tuple[MemberView, ...]:
        """Return what each committee member sees; nothing where there is no committee."""
        if self.aggregation != "committee":
            return ()
        encoding, floor = self.plan.encoding, self.plan.privacy.min_survivors
        size = encoding.padded * encoding.bits // 8
        return tuple(MemberView(heard, floor, size) for heard in self._helpers())

    def holder(self) -> HolderView | None:
        """Return what the key holder sees; None where nothing is encrypted."""
        return HolderView(self._helpers()[0]) if self.aggregation == "encrypt" else None

    def _helpers(self) -> list[tuple[Heard, ...]]:
        first = self.plan.privacy.clients
        indices = sorted({m.client for m in self.messages if m.client >= first})
        return [tuple(m for m in self.messages if m.client == index) for index in indices]

    def releases(self) -> ReleaseView:
        """Return what everybody sees."""
        noise = np.array(
            [_unit(self.plan, s) * self.plan.noise_variance(s) ** 0.5 for s in self.survivors]
        )
        return ReleaseView(
            self.sums, noise, self.plan.privacy.sample_rate, np.arange(len(self.member))
        )


def _unit(plan: RunPlan, survivors: int) -> float:
    """Return what turns a mean gradient into a sum in which one canary's gradient is 1."""
    if plan.local is None or plan.privacy.mechanism != "gaussian":
        return abs(plan.divisor(survivors)) / plan.privacy.clipping_norm
    # A canary moves its client by the local rate times its share of the expected batch.
    batch = plan.privacy.expected_batch / plan.privacy.clients
    return survivors * batch / (plan.local.learning_rate * plan.privacy.clipping_norm)


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

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        return np.ones(self._dimension, np.bool_)

    def gradient(
        self, adapter: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        total = np.zeros(self._dimension)
        total[self._canaries[indices[indices < len(self._canaries)]]] = self._norm / len(indices)
        return total


class _Keeper:
    """A server step that keeps every opened mean and never moves."""

    def __init__(self) -> None:
        self.means: list[npt.NDArray[np.float64]] = []

    def step(
        self, adapter: npt.NDArray[np.float32], gradient: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float32]:
        self.means.append(gradient.copy())
        return adapter.copy()

    def state(self) -> dict[str, npt.NDArray[np.float64] | int]:
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        del state


def punctual(local: LocalPlan | None) -> LocalPlan | None:
    """Return local steps without stragglers, whose noise would be less than a round's whole."""
    return None if local is None else dataclasses.replace(local, stragglers=0.0)


def plan_like(config: Config, dimension: int, records: int, rounds: int | None = None) -> RunPlan:
    """Plan a run under a configuration, for another length of the adapter.

    Above 16 clients or 100 rounds fewer are rehearsed; the noise is then planned for these, so
    that the same epsilon is spent. Delta is lowered where more records are rehearsed than it fits.
    """
    private, federation = config.privacy, config.federation
    clients = min(federation.clients, _MOST_CLIENTS)
    whole = clients == federation.clients
    protected = private.unit != "none"
    return plan_run(
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
        min_survivors=federation.floor if whole else None,
        max_colluders=private.max_colluders if whole else min(1, private.max_colluders),
        normalise=private.normalise and protected,
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
    """Run the configured federation on canaries.

    Parameters
    ----------
    config : Config
    key_source : callable(int) -> KeySource
        Where the clients' keys come from; that of the run under audit.
    canaries : int
        How many coins are flipped; canary j, if in, is a record of client ``j mod n``.
    plan : RunPlan, optional
        Taken as it is; by default :func:`plan_like` with as many coordinates as canaries.
    empty : bool
        Leave all records out, so that each sum is noise and nothing else.
    seed : int
        Of the coins alone.
    aggregation : {"peer", "committee", "encrypt"}, optional
        How rounds sum; as configured by default.
    reporter : Reporter, optional
        Told of rounds.

    Returns
    -------
    Rehearsal
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


def play(
    config: Config,
    key_source: Callable[[int], KeySource],
    plan: RunPlan,
    tasks: Sequence[LocalTask],
    *,
    aggregation: Aggregation | None = None,
    reporter: Reporter | None = None,
) -> Rehearsal:
    """Run the configured federation on any tasks, and write everything down.

    Parameters
    ----------
    config : Config
    key_source : callable(int) -> KeySource
    plan : RunPlan
    tasks : sequence of LocalTask
    aggregation : {"peer", "committee", "encrypt"}, optional
        As configured by default.
    reporter : Reporter, optional

    Returns
    -------
    Rehearsal
        Without batches, records and canaries: only the caller knows these.
    """
    mode = aggregation or config.federation.aggregation
    keeper = _Keeper()
    heard: list[Heard] = []
    with tempfile.TemporaryDirectory(prefix="carefl-audit-") as home:
        result = run_federation(
            plan,
            tasks,
            np.zeros(plan.encoding.dimension, np.float32),
            optimiser=keeper,
            folder=RunFolder.create(Path(home), "rehearsal: true\n", "rehearsal"),
            base_hash=bytes(32),
            reporter=_Rounds(reporter or SilentReporter()),
            key_source=key_source,
            dropout=config.federation.dropout,
            seed=config.run.seed,
            record=lambda node, message: heard.append(_heard(node, message)),
            aggregation=mode,
            committee_members=config.federation.committee_members,
            committee_spare=config.federation.committee_spare,
        )
    survivors = tuple(int(row["survivors"]) for row in result.rows)
    sums = [mean * _unit(plan, s) for mean, s in zip(keeper.means, survivors, strict=True)]
    nobody = np.zeros(0, np.bool_)
    return Rehearsal(
        plan, tuple(heard), np.array(sums), survivors, (), 0, nobody, config.run.seed, mode
    )


class _Rounds:
    """Passes progress on, under the audit's own name, and keeps the figures of rounds back."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def start(self, task: str, total: int) -> None:
        self._reporter.start("rehearsal", total)

    def advance(self, task: str, step: int = 1) -> None:
        self._reporter.advance("rehearsal", step)

    def finish(self, task: str) -> None:
        self._reporter.finish("rehearsal")

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        """Keep it back: a rehearsal's figures are nobody's result."""


def _heard(node: int, message: Any) -> Heard:
    """Copy one Flower message; arrays (the adapter, which is public) are left out."""
    data = message.metadata
    fields: dict[str, object] = {}
    if message.has_content():
        for record in message.content.config_records.values():
            fields.update(record.items())
    return Heard(
        int(data.group_id),
        node - FIRST_NODE,
        data.src_node_id >= FIRST_NODE,
        str(data.message_type),
        fields,
    )
