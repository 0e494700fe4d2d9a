"""Any tasks run through the real sessions, secure sum, samplers and strategy, with every message and sum recorded."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from carefl_secure.audit.views import Heard, HolderView, MemberView, ReleaseView, TranscriptView
from carefl_secure.config import Config
from carefl_secure.federation.in_process import Clients, InProcess
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import Aggregation, Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec, Simulation
from carefl_secure.federation.server.run import Monitoring, run_federation
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.plan_from_config import aggregation_of


@dataclass(frozen=True)
class Batch:
    """What one client drew in one round; only the auditor knows it."""

    round: int
    client: int
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rehearsal:
    """All that happened, secrets included; attacks get only views. The caller of `play` fills in the last three."""

    plan: RunPlan
    cohort: Cohort
    messages: tuple[Heard, ...]
    sums: npt.NDArray[np.float64]  # [rounds, D], the opened sums in units of the clipping norm
    survivors: tuple[int, ...]  # of each round
    seed: int
    batches: tuple[Batch, ...] = ()
    records: int = 0  # how many each client held
    member: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))  # the coins, [canaries]

    def transcript(self) -> TranscriptView:
        """Return what the server sees."""
        return TranscriptView(self.messages, self.plan, self.cohort, self.seed)

    def members(self) -> tuple[MemberView, ...]:
        """Return what each committee member sees; nothing where there is no committee."""
        if self.cohort.aggregation != "committee":
            return ()
        return tuple(MemberView(heard, self.transcript().shape) for heard in self._helpers())

    def holder(self) -> HolderView | None:
        """Return what the key holder sees; None where there is none."""
        if self.cohort.aggregation != "encrypted":
            return None
        return HolderView(self._helpers()[0], self.transcript().shape)

    def _helpers(self) -> list[tuple[Heard, ...]]:
        first = self.plan.privacy.clients
        indices = range(first, first + len(self.cohort.helpers))
        return [tuple(m for m in self.messages if m.client == index) for index in indices]

    def fresh(self) -> npt.NDArray[np.float64]:
        """Return the sums, with what they took back put in again if nobody dropped out, over the fresh deviation."""
        band = self.plan.privacy.correlation or (1,)
        spread = np.array([_unit(self.plan, s) * self.plan.noise_variance(s) ** 0.5 for s in self.survivors])
        whole = lfilter(np.array(band) / band[0], [1.0], self.sums, axis=0)
        return np.asarray(whole / spread[:, None] * self.plan.encoding.noise_gain**0.5)

    def releases(self) -> ReleaseView:
        """Return what everybody sees; under banded noise as sums with fresh noise alone."""
        noise = np.array([_unit(self.plan, s) * self.plan.noise_variance(s) ** 0.5 for s in self.survivors])
        noise /= self.plan.encoding.noise_gain**0.5
        sums = self.sums if self.plan.privacy.bands == 1 else self.fresh() * noise[:, None]
        return ReleaseView(sums, noise, self.plan.privacy.sample_rate, np.arange(len(self.member)))


def play(
    config: Config,
    key_source: Callable[[int], KeySource],
    plan: RunPlan,
    tasks: Sequence[LocalTask],
    *,
    aggregation: Aggregation | None = None,
    dropout: bool = True,
    reporter: Reporter | None = None,
) -> Rehearsal:
    """Run the configured federation, dropout included, on any tasks, and record everything."""
    agreed = aggregation_of(config)
    if aggregation is not None and aggregation != agreed.protocol:
        agreed = dataclasses.replace(agreed, protocol=aggregation)
    keeper, engine = _Keeper(), _Engine()
    heard: list[Heard] = []
    with tempfile.TemporaryDirectory(prefix="carefl-audit-") as home:
        result = run_federation(
            RunSpec(
                stage=Stage.only(plan),
                tasks=lambda: tasks,
                folder=RunFolder.create(Path(home), "rehearsal: true\n", "rehearsal"),
                base_hash=bytes(32),
                aggregation=agreed,
                key_source=key_source,
            ),
            np.zeros(plan.encoding.dimension, np.float32),
            keeper,
            engine=engine,
            monitoring=Monitoring(
                reporter=_Rounds(reporter or SilentReporter()),
                record=lambda node, message: heard.append(_heard(node, message)),
            ),
            simulation=Simulation(config.dropout if dropout else 0.0, config.run.seed),
        )
    survivors = tuple(int(row["survivors"]) for row in result.rows)
    sums = [mean * _unit(plan, s) for mean, s in zip(keeper.means, survivors, strict=True)]
    return Rehearsal(plan, engine.cohort, tuple(heard), np.array(sums), survivors, config.run.seed)


def _unit(plan: RunPlan, survivors: int) -> float:
    """Return the factor from a mean gradient to a sum in which one canary's gradient is 1."""
    if plan.local is None or plan.privacy.mechanism != "gaussian":
        return abs(plan.divisor(survivors)) / plan.privacy.clipping_norm
    # A canary moves its client by the local rate times its share of the expected batch.
    batch = plan.privacy.expected_batch / plan.privacy.clients
    return survivors * batch / (plan.local.learning_rate * plan.privacy.clipping_norm)


class _Engine(InProcess):
    """Plays all parties in this process, and keeps who they were."""

    cohort: Cohort

    def start(self, spec: RunSpec) -> Clients:
        parties = super().start(spec)
        self.cohort = parties.cohort
        return parties


class _Keeper:
    """A server step that keeps every opened mean and never changes the adapter."""

    def __init__(self) -> None:
        self.means: list[npt.NDArray[np.float64]] = []

    def step(self, adapter: npt.NDArray[np.float32], gradient: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        self.means.append(gradient.copy())
        return adapter.copy()

    def state(self) -> dict[str, npt.NDArray[np.float64] | int]:
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        del state


class _Rounds(SilentReporter):
    """Passes progress on under the audit's own name, without the figures of rounds."""

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


def _heard(node: int, message: Any) -> Heard:
    """Copy one Flower message without its arrays (the public adapter)."""
    data = message.metadata
    fields: dict[str, object] = {}
    if message.has_content():
        for record in message.content.config_records.values():
            fields.update(record.items())
    return Heard(int(data.group_id), node - FIRST_NODE, data.src_node_id >= FIRST_NODE, str(data.message_type), fields)
