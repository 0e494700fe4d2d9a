"""One line of a ledger, and which lines belong to one run, one plan and one unit."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carefl_secure.errors import BudgetExceededError, ConfigError, LedgerError
from carefl_secure.privacy.accounting.events import Event, event_from_json
from carefl_secure.strict_json import canonical_hash, canonical_json

KINDS = ("open", "spend", "release", "note")
"""A run begins; something is about to be released; it was released; anything else."""

START = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True)
class Entry:
    """One line of a ledger."""

    index: int  # from 0
    time: str  # UTC, ISO 8601
    kind: str  # one of `KINDS`
    payload: Mapping[str, Any]  # a spend holds its event under "event"
    previous: str  # the hash of the entry before; 64 zeros for the first
    hash: str  # SHA-256 over the canonical JSON of all the other fields

    @property
    def unprotected(self) -> bool:
        """Whether it notes a round that was released without any noise."""
        return self.payload.get("unprotected") is True

    @property
    def charges_round(self) -> bool:
        """Whether it charges a round, or notes it as unprotected or as covered by the spends of earlier rounds."""
        return self.kind == "spend" or self.unprotected or self.payload.get("covered") is True

    def of_run(self, run: str) -> bool:
        """Tell whether it belongs to a run or to one of its stages, ``RUN/STAGE``."""
        name = str(self.payload.get("run"))
        return name == run or name.startswith(f"{run}/")

    def line(self) -> bytes:
        """Return the entry as it stands in the file."""
        return canonical_json(dataclasses.asdict(self)) + b"\n"


def charged_by_round(ledgers: Iterable[Sequence[Entry]], run: str) -> Counter[int]:
    """Count, for every round of a run, the ledgers that charged it."""
    each = ({int(one.payload.get("round", -1)) for one in e if one.of_run(run) and one.charges_round} for e in ledgers)
    return Counter(number for rounds in each for number in rounds)


def clean_payload(kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a payload to plain JSON values, so that its hash survives the way through the file."""
    if kind not in KINDS:
        raise ConfigError(f"ledger entries are of kind {', '.join(KINDS)}, not {kind!r}")
    try:
        clean: dict[str, Any] = json.loads(json.dumps(dict(payload), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the payload of a ledger entry must be JSON with finite numbers: {error}") from error
    if kind == "spend":
        event_from_json(event_of(clean))
    return clean


def now() -> str:
    """Return the time of day for a new entry: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def make_entry(before: Sequence[Entry], kind: str, payload: Mapping[str, Any], time: str) -> Entry:
    """Make the entry that follows those before."""
    index, previous = len(before), before[-1].hash if before else START
    body = {"index": index, "time": time, "kind": kind, "payload": payload, "previous": previous}
    return Entry(index, time, kind, payload, previous, canonical_hash(body).hex())


def read_entry(line: bytes, before: Sequence[Entry], path: Path) -> Entry:
    """Read a line that must be, byte for byte, the entry that follows those before."""
    try:
        found = json.loads(line)
        entry = make_entry(before, found["kind"], found["payload"], found["time"])
        whole = entry.line()
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"{path} holds no entry in line {len(before) + 1}; restore it from a backup") from error
    if whole != line + b"\n" or entry.kind not in KINDS or not isinstance(entry.payload, dict):
        raise LedgerError(
            f"{path} was changed at entry {len(before)}: the chain of hashes breaks there; restore it from a backup"
        )
    return entry


def spent(entries: Iterable[Entry]) -> list[Event]:
    """Return the events of all spends among some entries, in order."""
    return [event_from_json(event_of(one.payload)) for one in entries if one.kind == "spend"]


def event_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the event of a spend, still as JSON; ConfigError where there is none."""
    event = payload.get("event")
    if not isinstance(event, Mapping):
        raise ConfigError("a spend needs its event as JSON under the key 'event'")
    return event


def split_runs(
    entries: Sequence[Entry], run: object = None, event: Event | None = None, *, another: bool = False
) -> tuple[list[Event], list[Event]]:
    """Separate the events of a ledger's first run, equal ones merged, from those of later runs.

    ``event``, of ``run`` (stages are named ``RUN/STAGE``), counts as one more. Where there are
    later runs, or ``another`` will follow, the first counts with its whole plan: what was planned
    and not executed too, since the decision to stop may depend on what was released.
    """
    spends = [
        (_run_name(e.payload.get("run")), event_from_json(event_of(e.payload)), e.payload)
        for e in entries
        if e.kind == "spend"
    ]
    if event is not None:
        spends.append((_run_name(run), event, {}))
    first: dict[tuple[object, Event], int] = {}
    planned: dict[tuple[object, Event], int] = {}
    later: list[Event] = []
    for name, spent, payload in spends:
        if name != spends[0][0]:
            later.append(spent)
            continue
        key = (payload.get("run", run), spent.times(1))
        first[key] = first.get(key, 0) + spent.count
        whole = payload.get("planned")
        if isinstance(whole, int) and not isinstance(whole, bool):
            cycles = -(-whole // int(payload.get("bands", 1)))
            planned[key] = max(cycles * spent.count, planned.get(key, 0))
    counts = {key: max(count, planned.get(key, 0)) if later or another else count for key, count in first.items()}
    return [one.times(count) for (_, one), count in counts.items()], later


def _run_name(run: object) -> object:
    return run.partition("/")[0] if isinstance(run, str) else run


def count_rounds(entries: Sequence[Entry], run: object) -> int:
    """Count the rounds of a run that were charged, or noted as released without noise."""
    return sum(entry.payload.get("run") == run and entry.charges_round for entry in entries)


def spends_due(entries: Sequence[Entry], run: object, bands: int, numbers: Iterable[int] = ()) -> int:
    """Return how many spends of a run are missing under banded noise, with rounds ``numbers`` more.

    A record is in rounds of one remainder modulo ``bands``, and each spend pays for one round of every record, with
    the rounds after it that take noise back. So as many are due as the most frequent remainder has rounds.
    """
    mine = [entry for entry in entries if entry.payload.get("run") == run and entry.charges_round]
    rounds = [*(int(entry.payload.get("round", -1)) for entry in mine), *numbers]
    due = max(Counter(each % bands for each in rounds).values(), default=0)
    return due - sum(entry.kind == "spend" for entry in mine)


def last_number(entries: Sequence[Entry], run: object) -> int:
    """Return the highest number of a charged round of a run; -1 where there is none."""
    used = [int(e.payload.get("round", -1)) for e in entries if e.payload.get("run") == run and e.charges_round]
    return max(used, default=-1)


def check_number(entries: Sequence[Entry], payload: Mapping[str, Any]) -> None:
    """Refuse (LedgerError), under banded noise, a round that does not come after all that were charged."""
    number, run = payload.get("round"), payload.get("run")
    if "bands" in payload and isinstance(number, int) and number <= (used := last_number(entries, run)):
        raise LedgerError(
            f"round {number} of run {run} does not come after round {used}, which is charged; under banded noise "
            "no number serves twice: go on with the next one"
        )


def check_planned(entries: Sequence[Entry], payload: Mapping[str, Any]) -> None:
    """Refuse a round (BudgetExceededError) once all that ``planned``, if given, allows are charged."""
    planned = payload.get("planned")
    if isinstance(planned, int) and count_rounds(entries, payload.get("run")) >= planned:
        raise BudgetExceededError(
            f"all {planned} rounds of the agreed plan are charged already; nothing was released: agree on another run"
        )


def check_unit(entries: Sequence[Entry], unit: object, path: Path) -> None:
    """Refuse (LedgerError) to mix units: prices for different neighbouring data sets have no sum."""
    held = {e.payload.get("unit") for e in entries if e.kind == "spend"}
    if held - {unit}:
        found = ", ".join(sorted(str(one or "unknown") for one in held - {unit}))
        raise LedgerError(
            f"{path} holds spends for unit {found}, and this run is for unit {unit or 'unknown'}; "
            "they cannot be priced together: keep one ledger per unit, or use other records"
        )
