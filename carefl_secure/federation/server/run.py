"""A whole run in one process: rounds, checkpoints, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, RunError
from carefl_secure.federation.client.round_budget import RoundBudget
from carefl_secure.federation.engine import Engine
from carefl_secure.federation.in_process import Clients, vanishing
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.ciphertext_packing import choose_fields
from carefl_secure.federation.plan.cohort import Aggregation
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.server.event_log import EventLog
from carefl_secure.federation.server.optimizers import ServerOptimizer
from carefl_secure.federation.server.strategy import Evaluate, SecureSumStrategy
from carefl_secure.federation.transport.flwr_env import quiet_flower
from carefl_secure.federation.transport.local_grid import Record
from carefl_secure.federation.transport.messages import pack_adapter
from carefl_secure.noise import KeySource, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.run_folder import RunFolder, write_atomically

__all__ = ["FederationResult", "run_federation"]

Adapter = NDArray[np.float32]
Scalar = float | int | str
_OPTIMISER = "optimiser."
_TASK = "rounds"
Follow = Callable[[Reporter, RunFolder], AbstractContextManager[Reporter]]
_PATIENCE = 60.0  # seconds that a round waits for nodes that are not online


@dataclass(frozen=True)
class FederationResult:
    """What a run ended with.

    Parameters
    ----------
    adapter : ndarray of float32, shape [D]
        After the last finished round.
    rows : tuple of mapping
        Figures of every finished round, those before a resumption included.
    epsilon : float
        What the server's ledger comes to; infinity without privacy.
    """

    adapter: Adapter
    rows: tuple[Mapping[str, Scalar], ...]
    epsilon: float


def _system_keys(index: int) -> KeySource:
    return SystemKeySource()


def run_federation(
    plan: RunPlan,
    tasks: Sequence[LocalTask],
    initial: Adapter,
    *,
    optimiser: ServerOptimizer,
    folder: RunFolder,
    base_hash: bytes,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    reporter: Reporter | None = None,
    key_source: Callable[[int], KeySource] = _system_keys,
    dropout: float = 0.0,
    seed: int = 0,
    workers: int = 1,
    ledgers: Path | None = None,
    max_epsilon: float | None = None,
    record: Record | None = None,
    resume: bool = False,
    aggregation: Aggregation = "pairwise",
    committee_members: int = 3,
    committee_dropout_tolerance: int = 0,
    key_prefetch: bool = True,
    engine: Engine = Clients,
    timeout: float = 3600.0,
    stage: Stage | None = None,
    follow: Follow | None = None,
) -> FederationResult:
    """Run all planned rounds, or those of one stage, with clients in this process.

    After every round the figures and then the checkpoint are replaced atomically, so an interrupt
    at any moment leaves a folder that ``resume`` goes on from.

    Parameters
    ----------
    plan : RunPlan
        From `plan_run`.
    tasks : sequence of LocalTask
        One per client.
    initial : ndarray of float32, shape [D]
        The adapter before the first round; a resumed run takes its checkpoint instead.
    optimiser : ServerOptimizer
        The server's step.
    folder : RunFolder
        Where the run is kept; its name is the run's name.
    base_hash : bytes
        32 bytes over the frozen base model.
    evaluate : callable(adapter) -> mapping, optional
        Figures on public records, every ``evaluate_every`` rounds and after the last.
    evaluate_every : int, optional
        Rounds between two evaluations.
    reporter : Reporter, optional
        Told of every round.
    key_source : callable(int) -> KeySource, optional
        Keys of a client; the operating system's entropy unless asked otherwise. Anything else
        makes noise and masks predictable.
    dropout : float, optional
        Share of the clients that vanish after the key phase of each round.
    seed : int, optional
        Decides who vanishes, and nothing else.
    workers : int, optional
        Clients that work at the same time.
    ledgers : Path, optional
        Folder of client ledgers that outlive the run.
    max_epsilon : float, optional
        The clients' own limit over all runs in their ledgers; the plan's target by default.
    record : callable(node, message) -> None, optional
        Sees everything the server sends and receives.
    resume : bool, optional
        Go on from the folder's checkpoint.
    aggregation : {"pairwise", "committee", "encrypted"}, optional
        How a round sums; the same noise gives the same adapter in all three.
    committee_members : int, optional
        Size of the committee, where there is one.
    committee_dropout_tolerance : int, optional
        Members that may vanish once all have announced; ``2 * committee_dropout_tolerance + 1``
        honest ones are needed then, in place of one.
    key_prefetch : bool, optional
        Whether the keys of a round are made on the way of the round before; changes no result, and
        nothing where uploads are encrypted.
    engine : Engine, optional
        Makes the parties and the grid that reaches them; in this process by default. The same
        noise gives the same adapter on every engine.
    timeout : float, optional
        Seconds that a party on a network has to answer one message; one that takes longer counts
        as dropped out of the round.
    stage : Stage, optional
        Which stage of a run this is; ``plan`` is then its own, ``folder`` names it, and a stage
        after the first goes on in a folder and in ledgers that were used before.
    follow : callable(Reporter, RunFolder) -> context manager, optional
        Gives the reporter of the rounds, such as one that passes figures on to trackers; entered
        once figures that go beyond the checkpoint are gone.

    Returns
    -------
    FederationResult

    Raises
    ------
    BudgetExceededError
        The server's or a client's ledger has no room for the next round.
    CohortError
        Too few clients remained in a round.
    RunError
        The folder does not fit: it was used before, or holds another run.
    CareflError
        Whatever a client refused with.

    Guarantees
    ----------
    The server's ledger holds a spend for every round of which any vector was asked, across all
    resumptions. Rounds that were paid for and then lost are not run again: a resumed run is shorter
    by as many, so that the target is kept.
    """
    reports: Reporter = reporter or SilentReporter()
    following = nullcontext(reports) if follow is None else follow(reports, folder)
    journal = EventLog(folder.path / "logs" / "server.jsonl")
    way: str = aggregation
    if aggregation == "encrypted":
        choose_fields(plan.encoding)
    if aggregation == "committee" and committee_dropout_tolerance:
        # It changes whom the clients trust.
        way = f"{aggregation} (spare {committee_dropout_tolerance})"
    clients = engine(
        plan,
        tasks,
        folder,
        base_hash,
        key_source,
        ledgers,
        max_epsilon,
        aggregation=aggregation,
        committee_members=committee_members,
        committee_dropout_tolerance=committee_dropout_tolerance,
        key_prefetch=key_prefetch,
    )
    server_ledger = Ledger(folder.ledger, {"run": folder.name})
    round_budget = RoundBudget(server_ledger, plan, clients.cohort)
    offset = 0 if stage is None else stage.offset
    if resume:
        for ledger in (server_ledger, *clients.ledgers):
            ledger.recover()
        adapter, finished = _restore(folder, plan, way, optimiser, stage)
    else:
        adapter, finished = _begin(folder, plan, way, optimiser, initial, stage), offset
    lost = max(0, round_budget.paid() - (finished - offset)) if plan.protected else 0
    last = max(finished, offset + plan.privacy.rounds - lost)
    if lost:
        reports.note(
            f"{lost} interrupted rounds were already paid for; the run ends after round {last}"
        )
    gone, drop = vanishing(plan, dropout, seed)
    if gone < round(dropout * len(tasks)):
        reports.note(f"only {gone} clients vanish in a round, so that the floor is kept")

    def on_round(row: dict[str, Scalar], moved: Adapter) -> None:
        nonlocal adapter
        adapter = moved
        if stage is not None:
            row = {"stage": stage.name, **row}
        folder.append_metrics(row)
        _save(folder, plan, way, optimiser, moved, int(row["round"]), stage)
        journal.opened(int(row["round"]), int(row["survivors"]))
        reports.round(row)
        reports.advance(_TASK)

    strategy = SecureSumStrategy(
        plan,
        clients.cohort,
        server_ledger,
        optimiser,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        on_round=on_round,
        finished=finished,
        last=last,
        timeout=timeout,
        patience=min(timeout, _PATIENCE),
    )
    reports.start(_TASK, last - finished)
    try:
        with following as reports, journal:
            parties = len(clients.cohort.roster) + len(clients.cohort.helpers)
            journal.begin(folder.run_id, parties, finished + 1, last)
            if finished < last:
                watch = journal.watching(record)
                grid = clients.grid(workers, drop if gone else None, watch)
                with quiet_flower():
                    rounds = last - finished
                    strategy.start(grid, pack_adapter(adapter), num_rounds=rounds, timeout=timeout)
                clients.finish()
    finally:
        clients.close()
        reports.finish(_TASK)
    return FederationResult(adapter, tuple(folder.read_metrics()), round_budget.epsilon())


def _begin(
    folder: RunFolder,
    plan: RunPlan,
    aggregation: str,
    optimiser: ServerOptimizer,
    initial: Adapter,
    stage: Stage | None,
) -> Adapter:
    """Check that the folder is fresh, then write the plan and the checkpoint before any round.

    The plan of a run in stages is whole before the first of them; later ones add a checkpoint.
    """
    if initial.dtype != np.float32 or initial.shape != (plan.encoding.dimension,):
        raise ConfigError(
            f"the initial adapter must be float32 of {plan.encoding.dimension} entries, "
            f"not {initial.dtype} {initial.shape}"
        )
    if stage is None or stage.number == 1:
        if folder.checkpoint.exists() or folder.ledger.exists():
            raise RunError(f"{folder.path} was used before; resume it or create a new run")
        paper = plan.to_json() if stage is None else stage.paper
        text = json.dumps(paper, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(folder.plan, text.encode() + b"\n")
    adapter = initial.copy()
    offset = 0 if stage is None else stage.offset
    _save(folder, plan, aggregation, optimiser, adapter, offset, stage)
    return adapter


def _save(
    folder: RunFolder,
    plan: RunPlan,
    aggregation: str,
    optimiser: ServerOptimizer,
    adapter: Adapter,
    number: int,
    stage: Stage | None,
) -> None:
    state = {_OPTIMISER + name: value for name, value in optimiser.state().items()}
    agreed: dict[str, int | str] = {
        "round": number,
        "plan": _digest(plan, stage),
        "aggregation": aggregation,
    }
    where = {} if stage is None else stage.state()
    folder.write_checkpoint({**agreed, "adapter": adapter, **where, **state})


def _digest(plan: RunPlan, stage: Stage | None) -> str:
    """Return the hash of what plan.json holds."""
    return plan.hash().hex() if stage is None else stage.digest


def _restore(
    folder: RunFolder,
    plan: RunPlan,
    aggregation: str,
    optimiser: ServerOptimizer,
    stage: Stage | None,
) -> tuple[Adapter, int]:
    """Read the checkpoint of the last finished round and drop figures that go beyond it."""
    state = folder.read_checkpoint()
    if state.get("plan") != _digest(plan, stage):
        raise RunError(f"{folder.path} was begun under another plan; resume it with its own")
    if stage is not None and state.get("stage") != stage.number:
        raise RunError(
            f"the checkpoint of {folder.path} is of stage {state.get('stage')}, not "
            f"{stage.number}; restore it from a copy"
        )
    begun = state.get("aggregation", "pairwise")  # a checkpoint without it is older than the others
    if begun != aggregation:
        raise RunError(
            f"{folder.path} was begun with aggregation {begun}, not {aggregation}; whom the "
            "clients trust does not change within a run: resume it with its own"
        )
    adapter, number = state.get("adapter"), state.get("round")
    if not isinstance(adapter, np.ndarray) or not isinstance(number, int):
        raise RunError(f"the checkpoint of {folder.path} lacks its adapter; restore it from a copy")
    optimiser.load(
        {
            name.removeprefix(_OPTIMISER): value
            for name, value in state.items()
            if name.startswith(_OPTIMISER)
        }
    )
    folder.keep_metrics(number)
    return adapter.astype(np.float32), number
