"""Which spends of a ledger belong to one run, how many it may have, and which unit they protect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carefl_secure.errors import BudgetExceededError, LedgerError
from carefl_secure.privacy.accounting.events import Event, event_from_json
from carefl_secure.privacy.ledger.entry import Entry, event_of


def split_runs(
    entries: Sequence[Entry], run: object = None, event: Event | None = None, *, another: bool = False
) -> tuple[list[Event], list[Event]]:
    """Separate the events of a ledger's first run, equal ones merged, from those of later runs.

    ``event``, of ``run`` (stages are named ``RUN/STAGE``), counts as one more. Where there are
    later runs, or ``another`` will follow, the first counts with its whole plan: what was planned
    and not executed too, since the decision to stop may depend on what was released.
    """
    spends = [
        (_name(e.payload.get("run")), event_from_json(event_of(e.payload)), e.payload)
        for e in entries
        if e.kind == "spend"
    ]
    if event is not None:
        spends.append((_name(run), event, {}))
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
            planned[key] = max(whole * spent.count, planned.get(key, 0))
    counts = {key: max(count, planned.get(key, 0)) if later or another else count for key, count in first.items()}
    return [one.times(count) for (_, one), count in counts.items()], later


def _name(run: object) -> object:
    return run.partition("/")[0] if isinstance(run, str) else run


def count_rounds(entries: Sequence[Entry], run: object) -> int:
    """Count the rounds of a run that were charged, or noted as released without noise."""
    return sum(entry.payload.get("run") == run and entry.charges_round for entry in entries)


def check_planned(entries: Sequence[Entry], payload: Mapping[str, Any]) -> None:
    """Refuse a round once as many as the run's plan has are charged, in whatever attempts.

    Raises BudgetExceededError; a payload without ``planned`` is of no plan and is not bounded here.
    """
    planned = payload.get("planned")
    if isinstance(planned, int) and count_rounds(entries, payload.get("run")) >= planned:
        raise BudgetExceededError(
            f"all {planned} rounds of the agreed plan are charged already; nothing was released: agree on another run"
        )


def check_unit(entries: Sequence[Entry], unit: object, path: Path) -> None:
    """Refuse a run for one unit in a ledger that holds spends for another (LedgerError).

    Their prices concern different neighbouring data sets, so no sum of them is a promise.
    """
    held = {e.payload.get("unit") for e in entries if e.kind == "spend"}
    if held - {unit}:
        found = ", ".join(sorted(str(one or "unknown") for one in held - {unit}))
        raise LedgerError(
            f"{path} holds spends for unit {found}, and this run is for unit {unit or 'unknown'}; "
            "they cannot be priced together: keep one ledger per unit, or use other records"
        )
