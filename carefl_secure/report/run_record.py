"""Read a run folder: what was agreed, what was spent, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carefl_secure.config.load import read_yaml
from carefl_secure.errors import ConfigError, LedgerError, PrivacyError, RunError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import StagedPlan
from carefl_secure.privacy import Entry, Event, Ledger, PrivacyPlan, event_from_json
from carefl_secure.privacy.ledger.statement import find_ledgers
from carefl_secure.report.audit import AuditFinding, read_audits
from carefl_secure.run_folder import RunFolder
from carefl_secure.strict_json import canonical_hash, load_json

_COLUMNS = {"round": int, "survivors": int, "gradient_norm": float}


@dataclass(frozen=True)
class Book:
    """One ledger of the run, whole or broken."""

    name: str  # "server", or the number of the client
    entries: tuple[Entry, ...]  # empty where the ledger cannot be trusted
    error: str = ""  # why it cannot

    def of_run(self, run: str) -> tuple[Entry, ...]:
        """Return the entries that belong to one run, all its stages, or to one stage."""
        return tuple(e for e in self.entries if e.of_run(run))


@dataclass(frozen=True)
class StageRecord:
    """What was agreed on for one stage of a run, or for a run in one stage."""

    run: str  # the name in ledgers, with the stage where there are several
    first: int  # the number of its first round
    plan: Mapping[str, Any]
    privacy: PrivacyPlan  # the plan's privacy part, checked
    event: Event | None  # what one round of it releases; None for unit none


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says; ``plan``, ``privacy``, ``event`` of a staged run: the last stage's, over all rounds."""

    path: Path
    run_id: str  # as the server's ledger names the run; the folder's name where that is broken
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    privacy: PrivacyPlan  # checked
    event: Event | None  # one planned round; None for unit none
    plan_hash: str  # SHA-256 of the canonical plan
    begun_under: str  # that in the checkpoint, empty where there is none
    server: Book
    clients: tuple[Book, ...]
    simulated: bool  # whether the clients lived inside the run folder, in one process
    rows: tuple[Mapping[str, Any], ...]  # figures of every finished round
    audit: tuple[AuditFinding, ...] | None = None  # None where no audit was made
    stages: tuple[StageRecord, ...] = ()
    graph: str = ""  # what hiding rests on where the clients mask on a sparse graph

    def stage_of(self, number: int) -> StageRecord:
        """Return the stage that a round belongs to, by its number."""
        return [stage for stage in self.stages if stage.first <= max(number, 1)][-1]

    def stage_named(self, run: object) -> StageRecord:
        """Return the stage that an entry of a ledger names; the first where it names none."""
        return next((stage for stage in self.stages if stage.run == run), self.stages[0])

    def setting(self, dotted: str) -> Any:
        """Return one setting of the configuration, or None."""
        found: Any = self.config
        for name in dotted.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def read_run(path: Path) -> RunRecord:
    """Read a run folder; RunError if it is none, has no round or is damaged, PrivacyError if no promise can hold."""
    folder = RunFolder.open(Path(path))
    path = folder.path
    config, plan = _settings(folder.config), folder.read_plan()
    if not folder.ledger.is_file():
        raise RunError(f"{path} holds no ledger.jsonl: nothing was released, so there is nothing to report")
    server = _book("server", folder.ledger)
    identity = server.entries[0].payload.get("identity", {}) if server.entries else {}
    own = path / "clients"
    run_id = str(identity.get("run", path.resolve().name))
    agreed, stages = _stages(folder.plan, plan, run_id)
    return RunRecord(
        path=path,
        run_id=run_id,
        config=config,
        plan=plan,
        privacy=agreed.privacy,
        event=stages[-1].event,
        plan_hash=canonical_hash(plan).hex(),
        begun_under=_begun_under(folder),
        server=server,
        clients=tuple(_book(file.parent.name, file) for file in find_ledgers(path) if own in file.parents),
        simulated=own.is_dir(),
        rows=_rows(folder.metrics),
        audit=read_audits(path, run_id),
        stages=stages,
        graph="" if agreed.whole.graph is None else agreed.whole.graph.text,
    )


def _stages(path: Path, plan: Mapping[str, Any], run_id: str) -> tuple[StagedPlan, tuple[StageRecord, ...]]:
    """Read the plan of every stage, each with the event that the file states for a round of it."""
    if not isinstance(plan.get("privacy"), Mapping):
        raise RunError(f"{path} lacks its privacy part; restore it from a copy")
    found, first = list[StageRecord](), 1
    try:
        # Whether the stated event follows from the plan is a check of the report.
        agreed = StagedPlan.from_json(plan, check_event=False)
        for one, own in zip(plan.get("stages", (plan,)), agreed.plans, strict=True):
            name = f"{run_id}/{one['name']}" if "name" in one else run_id
            event = _stated_event(own, one)
            found.append(StageRecord(name, first, one, own.privacy, event))
            first += own.privacy.rounds
    except (ConfigError, PrivacyError) as error:
        raise PrivacyError(
            f"{path} states a plan with which no promise can be kept, so there is nothing to "
            f"report; restore it from a copy: {error}"
        ) from error
    return agreed, tuple(found)


def _stated_event(plan: RunPlan, stated: Mapping[str, Any]) -> Event | None:
    """Return what one round releases: as the file states it for Skellam noise, else computed."""
    if plan.privacy.mechanism != "skellam":
        return plan.event
    event = stated["event"]
    if not isinstance(event, Mapping):
        raise ConfigError("it names no event")
    return event_from_json(event)


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        found = read_yaml(path)
    except ConfigError as error:
        raise RunError(f"the record of this run is damaged: {error}") from error
    if "unsafe_deterministic_noise" not in found:  # the last line of every version's file
        raise RunError(f"{path} is cut off; restore it from a copy")
    return found


def _book(name: str, path: Path) -> Book:
    try:
        return Book(name, Ledger(path).entries())
    except LedgerError as error:
        return Book(name, (), str(error).replace(str(path), "its ledger"))


def _begun_under(folder: RunFolder) -> str:
    if not folder.checkpoint.is_file():
        return ""
    state = folder.read_checkpoint()
    if "plan" not in state:
        raise RunError(f"the checkpoint {folder.checkpoint} names no plan; restore it from a copy")
    return str(state["plan"])


def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        return ()
    try:
        whole, _, _torn = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        rows = [load_json(line) for line in whole.splitlines()]
        for row in rows:
            for name, kind in _COLUMNS.items():
                if name == "round" or name in row:
                    kind(row[name])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read as one JSON object of figures per line; restore it from a copy"
        ) from error
    return tuple(sorted(rows, key=lambda row: int(row["round"])))
