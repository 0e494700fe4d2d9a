"""A whole run, or one stage of it: rounds, checkpoints, and resumption after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, LedgerError, RunError
from carefl_secure.federation import quiet_flower
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.federation.in_process import InProcess, dropping_out
from carefl_secure.federation.run_spec import Engine, Parties, PerformanceFlags, RunSpec, Simulation
from carefl_secure.federation.server.event_log import EventLog
from carefl_secure.federation.server.optimizers import ServerOptimizer
from carefl_secure.federation.server.strategy import SecureSumStrategy
from carefl_secure.federation.server.sum_guard import SumGuard
from carefl_secure.federation.transport.local_grid import OneRunGrid, Record
from carefl_secure.federation.transport.messages import pack_adapter
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.ledger.entry import Entry, charged_by_round
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.secagg.encrypted.packing import choose_fields

_OPTIMIZER = "optimizer."

Adapter = NDArray[np.float32]
Scalar = float | int | str
Evaluate = Callable[[Adapter], Mapping[str, float]]
Follow = Callable[[Reporter, RunFolder], AbstractContextManager[Reporter]]
_TASK = "rounds"
_PATIENCE = 60.0  # seconds that a round waits for nodes that are not online


class Checkpoints:
    """Writes and reads the state of one run or stage; ``optimizer`` is restored in place."""

    def __init__(self, spec: RunSpec, optimizer: ServerOptimizer) -> None:
        self._folder, self._stage, self._optimizer = spec.folder, spec.stage, optimizer
        self._aggregation = spec.aggregation.label

    def begin(self, initial: Adapter) -> Adapter:
        """Check that the folder is fresh, then write the plan and a checkpoint before any round.

        The plan of a run in stages is whole before the first of them; later ones add a checkpoint. Raises ConfigError
        when the adapter does not fit the plan, RunError when the folder was used.
        """
        dimension = self._stage.plan.encoding.dimension
        if initial.dtype != np.float32 or initial.shape != (dimension,):
            raise ConfigError(f"the adapter must be float32 [{dimension}], not {initial.dtype} {initial.shape}")
        folder, stage = self._folder, self._stage
        if stage.number == 1:
            if folder.checkpoint.exists() or folder.ledger.exists():
                raise RunError(f"{folder.path} was used before; resume it or create a new run")
            self._write_plan()
        adapter = initial.copy()
        self.save(adapter, stage.offset)
        return adapter

    def _write_plan(self) -> None:
        text = json.dumps(self._stage.agreement, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self._folder.plan, text.encode() + b"\n")

    def save(self, adapter: Adapter, number: int) -> None:
        """Replace the checkpoint by the state after round ``number``."""
        state = {_OPTIMIZER + name: value for name, value in self._optimizer.state().items()}
        agreed: dict[str, int | str] = {"round": number, "plan": self._stage.digest, "aggregation": self._aggregation}
        self._folder.write_checkpoint({**agreed, "adapter": adapter, **self._stage.state(), **state})

    def restore(self) -> tuple[Adapter, int]:
        """Return adapter and number of the last finished round; drop figures that go beyond it.

        A torn plan file is written anew. RunError when the checkpoint is damaged or of another run.
        """
        folder, stage = self._folder, self._stage
        state = folder.read_checkpoint()
        if state.get("plan") != stage.digest:
            raise RunError(f"{folder.path} was begun under another plan; resume it with its own")
        if state.get("stage") != stage.number:
            raise RunError(
                f"the checkpoint of {folder.path} is of stage {state.get('stage')}, not "
                f"{stage.number}; restore it from a copy"
            )
        begun = state.get("aggregation")
        if begun != self._aggregation:
            raise RunError(
                f"{folder.path} was begun with aggregation {begun}, not {self._aggregation}; whom "
                "the clients trust does not change within a run: resume it with its own"
            )
        adapter, number = state.get("adapter"), state.get("round")
        if not isinstance(adapter, np.ndarray) or not isinstance(number, int):
            raise RunError(f"the checkpoint of {folder.path} lacks its adapter; restore it from a copy")
        self._optimizer.load({k.removeprefix(_OPTIMIZER): v for k, v in state.items() if k.startswith(_OPTIMIZER)})
        try:
            folder.read_plan()
        except RunError:
            self._write_plan()
        folder.keep_metrics(number)
        return adapter.astype(np.float32), number


@dataclass(frozen=True)
class FederationResult:
    """What a run ended with: all figures, and the server's ledger (infinity without privacy)."""

    adapter: Adapter
    rows: tuple[Mapping[str, Scalar], ...]
    epsilon: float


@dataclass(frozen=True)
class Monitoring:
    """Who observes a run; nothing here changes its result.

    ``evaluate`` returns figures on public records, every ``evaluate_every`` rounds and after the last. ``follow``
    gives the reporter of the rounds, as for trackers; it is entered once figures beyond the checkpoint are gone.
    ``record`` sees everything the server sends and receives.
    """

    evaluate: Evaluate | None = None
    evaluate_every: int = 1
    reporter: Reporter = field(default_factory=SilentReporter)
    follow: Follow | None = None
    record: Record | None = None

    def __post_init__(self) -> None:
        if self.evaluate_every < 1:
            raise ConfigError(f"evaluate_every is {self.evaluate_every}; it must be at least 1")

    def following(self, folder: RunFolder) -> AbstractContextManager[Reporter]:
        """Return the context that gives the reporter of the rounds."""
        reporter, follow = self.reporter, self.follow
        return nullcontext(reporter) if follow is None else follow(reporter, folder)

    def figures(self, row: dict[str, Scalar], adapter: Adapter, last: int) -> dict[str, Scalar]:
        """Return the row of a round with the figures of its evaluation, if one is due."""
        number = int(row["round"])
        if self.evaluate is None or (number != last and number % self.evaluate_every):
            return row
        for name, value in self.evaluate(adapter).items():
            if name in row or not math.isfinite(value):
                raise RunError(f"evaluation returned {name} = {value}; give it a name of its own and a finite value")
            row[name] = float(value)
        return row


def run_federation(
    spec: RunSpec,
    initial: Adapter,
    optimizer: ServerOptimizer,
    *,
    engine: Engine | None = None,
    monitoring: Monitoring | None = None,
    simulation: Simulation | None = None,
    performance: PerformanceFlags | None = None,
    resume: bool = False,
) -> FederationResult:
    """Run all planned rounds, or those of one stage.

    Figures, then the checkpoint, are replaced atomically after every round, so ``resume`` goes on after any interrupt,
    from the checkpoint in place of ``initial``, float32 of shape [D]. ``engine`` starts the parties, in this process
    by default; the same noise gives the same adapter on every engine. BudgetExceededError is raised where the server's
    or a client's ledger has no room for the next round, CohortError where too few clients remained in a round,
    RunError where the folder was used before or holds another run, and otherwise what a client refused with.

    Guarantees
    ----------
    The server's ledger holds a spend for every round of which any vector was asked, across all resumptions. Rounds
    that were charged and then lost are not run again: a resumed run is shorter by as many, so that the target is kept.
    Parties that were started are closed, whatever fails.
    """
    watched = monitoring or Monitoring()
    if spec.aggregation.protocol == "encrypted":
        choose_fields(spec.plan.encoding)  # refused before anything is started
    following = watched.following(spec.folder)  # which may fail, so before anything is started
    parties = (engine or InProcess()).start(spec)
    try:
        rounds = _Rounds(spec, optimizer, parties, watched, simulation or Simulation())
        return rounds.run(rounds.open(initial, resume), following, performance or PerformanceFlags())
    finally:
        parties.close()


class _Rounds:
    """The rounds of one run whose parties have been started."""

    def __init__(
        self, spec: RunSpec, optimizer: ServerOptimizer, parties: Parties, watched: Monitoring, simulation: Simulation
    ) -> None:
        self._spec, self._parties, self._monitoring, self._optimizer = spec, parties, watched, optimizer
        self._checkpoints = Checkpoints(spec, optimizer)
        self._ledger = Ledger(spec.folder.ledger, {"run": spec.folder.name})
        self._budget = RoundBudget(self._ledger, spec.plan, parties.cohort)
        self._reporter = watched.reporter
        self._log = EventLog(spec.folder.events, self._reporter, len(parties.cohort.roster))
        self._dropouts, self._drop = dropping_out(spec.plan, simulation)
        if self._dropouts < round(simulation.dropout * spec.plan.privacy.clients):
            self._reporter.note(f"only {self._dropouts} clients drop out of a round, so that min_survivors remain")

    def run(
        self, begun: tuple[Adapter, int, int], following: AbstractContextManager[Reporter], flags: PerformanceFlags
    ) -> FederationResult:
        """Run what is left of the rounds; ``begun`` is what `open` returned."""
        folder, cohort = self._spec.folder, self._parties.cohort
        self._adapter, finished, last = begun
        strategy = SecureSumStrategy(
            self._spec.plan,
            cohort,
            self._ledger,
            self._optimizer,
            on_round=lambda row, adapter: self._finish_round(row, adapter, last),
            finished=finished,
            last=last,
            waiting=(flags.timeout, min(flags.timeout, _PATIENCE)),
        )
        strategy.faults.note, strategy.count_bytes = self._log.fault, self._log.traffic
        self._reporter.start(_TASK, last - finished)
        try:
            with following as self._reporter, self._log:
                self._log.begin(folder.run_id, len(cohort.roster) + len(cohort.helpers), finished + 1, last)
                if finished < last:
                    self._drive(strategy, last - finished, flags)
        finally:
            self._reporter.finish(_TASK)
        return FederationResult(self._adapter, tuple(folder.read_metrics()), self._budget.epsilon())

    def open(self, initial: Adapter, resume: bool) -> tuple[Adapter, int, int]:
        """Return the adapter, the number of finished rounds, and that of the last round to run."""
        plan, offset = self._spec.plan, self._spec.stage.offset
        if resume:
            self._check_charged([ledger.entries() for ledger in self._parties.ledgers])
            adapter, finished = self._checkpoints.restore()
        else:
            adapter, finished = self._checkpoints.begin(initial), offset
        lost = max(0, self._budget.charged() - (finished - offset)) if plan.protected else 0
        last = max(finished, offset + plan.privacy.rounds - lost)
        if plan.privacy.correlation is not None:  # no number serves twice
            done, finished = finished, max(finished, self._budget.last_number())
            lost, last = finished - done, max(finished, offset + plan.privacy.rounds)
        if lost:
            self._reporter.note(f"{lost} interrupted rounds were already charged; the run ends after round {last}")
        return adapter, finished, last

    def _check_charged(self, clients: Sequence[Sequence[Entry]]) -> None:
        """Refuse (LedgerError) to go on where clients on this machine lost a spend: it would be forgotten."""
        run, own = self._spec.folder.name, self._ledger.entries()
        charged = charged_by_round(clients, run)
        for one in own if clients else ():
            number = int(one.payload.get("round", -1))
            if one.kind == "release" and charged[number] < (count := int(one.payload["survivors"])):
                raise LedgerError(
                    f"round {number} of {run} used the sums of {count} clients, and only {charged[number]} client "
                    "ledgers hold a spend for it; restore the missing ledgers (privacy.ledgers names their folder)"
                )

    def _drive(self, strategy: SecureSumStrategy, rounds: int, performance: PerformanceFlags) -> None:
        """Have Flower drive the strategy over the engine's grid."""
        watch = self._log.watching(self._monitoring.record)
        grid = self._parties.grid(performance.workers, self._drop if self._dropouts else None, watch)
        if isinstance(grid, OneRunGrid):
            self._log.names = grid.names
        arrays = pack_adapter(self._adapter)
        with quiet_flower():
            strategy.start(grid, arrays, num_rounds=rounds, timeout=performance.timeout)
        self._parties.finish()

    def _finish_round(self, row: dict[str, Scalar], adapter: Adapter, last: int) -> None:
        """Evaluate, then write figures and checkpoint."""
        row = self._monitoring.figures(row, adapter, last)
        self._adapter = adapter
        if self._spec.stage.name:
            row = {"stage": self._spec.stage.name, **row}
        number = int(row["round"])
        self._spec.folder.append_metrics(row)
        self._checkpoints.save(adapter, number)
        self._log.opened(number, int(row["survivors"]))
        if isinstance(self._optimizer, SumGuard):
            self._judged(number, self._optimizer)
        self._reporter.round(row)
        self._reporter.advance(_TASK)

    def _judged(self, number: int, guard: SumGuard) -> None:
        """Say which sum was rejected, and who is excluded."""
        self._log.judged(number, guard.excess, guard.found)
        if guard.excess:
            self._reporter.note(
                f"round {number}: the opened sum is {guard.excess:.3g} times as long as honest "
                "clients can make it, so no step was taken; a client sends what it must not"
            )
        for index in sorted(guard.found):
            self._reporter.note(
                f"client {index} is excluded after round {number}: every rejected sum held its "
                "vector, and sums without it were accepted"
            )
