"""Any tasks run through the real federation, with every message and every sum recorded.

The sessions, the secure sum, the samplers and the strategy are those of the run under audit.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.views import Heard, HolderView, MemberView, ReleaseView, TranscriptView
from carefl_secure.config import Config
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec, Simulation
from carefl_secure.federation.server.run import Monitoring, run_federation
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.aggregation_from_config import aggregation_of

__all__ = ["Batch", "Rehearsal", "play"]


@dataclass(frozen=True)
class Batch:
    """What one client drew in one round; only the auditor knows it."""

    round: int
    client: int
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rehearsal:
    """All that happened, secrets included; attacks get only the views.

    ``sums`` (float64, shape [rounds, D]) are the opened sums in units of the clipping norm,
    ``survivors`` the clients of each round, ``records`` how many each client held, ``member``
    (bool, shape [canaries]) the coins.
    """

    plan: RunPlan
    messages: tuple[Heard, ...]
    sums: npt.NDArray[np.float64]
    survivors: tuple[int, ...]
    batches: tuple[Batch, ...]
    records: int
    member: npt.NDArray[np.bool_]
    seed: int
    aggregation: Aggregation = "pairwise"

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
        """Return what the key holder sees; None where there is none."""
        if self.aggregation != "encrypted":
            return None
        return HolderView(self._helpers()[0])

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


def play(
    config: Config,
    key_source: Callable[[int], KeySource],
    plan: RunPlan,
    tasks: Sequence[LocalTask],
    *,
    aggregation: Aggregation | None = None,
    reporter: Reporter | None = None,
) -> Rehearsal:
    """Run the configured federation on any tasks, and record everything.

    ``aggregation`` is as configured by default. The rehearsal has no batches, records or canaries:
    only the caller knows these.
    """
    agreed = aggregation_of(config)
    if aggregation is not None and aggregation != agreed.protocol:
        agreed = dataclasses.replace(agreed, protocol=aggregation)
    keeper = _Keeper()
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
            monitoring=Monitoring(
                reporter=_Rounds(reporter or SilentReporter()),
                record=lambda node, message: heard.append(_heard(node, message)),
            ),
            simulation=Simulation(config.dropout, config.run.seed),
        )
    survivors = tuple(int(row["survivors"]) for row in result.rows)
    sums = [mean * _unit(plan, s) for mean, s in zip(keeper.means, survivors, strict=True)]
    nobody = np.zeros(0, np.bool_)
    return Rehearsal(
        plan,
        tuple(heard),
        np.array(sums),
        survivors,
        (),
        0,
        nobody,
        config.run.seed,
        agreed.protocol,
    )


def _unit(plan: RunPlan, survivors: int) -> float:
    """Return the factor from a mean gradient to a sum in which one canary's gradient is 1."""
    if plan.local is None or plan.privacy.mechanism != "gaussian":
        return abs(plan.divisor(survivors)) / plan.privacy.clipping_norm
    # A canary moves its client by the local rate times its share of the expected batch.
    batch = plan.privacy.expected_batch / plan.privacy.clients
    return survivors * batch / (plan.local.learning_rate * plan.privacy.clipping_norm)


class _Keeper:
    """A server step that keeps every opened mean and never changes the adapter."""

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


class _Rounds:
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

    def round(self, row: Mapping[str, float | int | str]) -> None:
        """Discard the row: a rehearsal's figures are no result."""


def _heard(node: int, message: Any) -> Heard:
    """Copy one Flower message without its arrays (the public adapter)."""
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
