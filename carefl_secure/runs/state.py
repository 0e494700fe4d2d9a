"""Where a run stands, from its folder alone: rounds, spending, last events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from carefl_secure.privacy.ledger.statement import RunSpending, delta_for, run_spending
from carefl_secure.run_folder import RunFolder
from carefl_secure.strict_json import load_json


@dataclass(frozen=True)
class RunState:
    """How far a run is, and what it has spent by the ledger that holds most.

    ``epsilon`` is None before the first round, and where a round had no noise; ``epsilon_planned`` None without a
    limit. ``rounds_paid_but_not_opened`` are charged all the same.
    """

    run: str
    state: Literal["not begun", "begun", "finished"]
    rounds_planned: int | None
    rounds_finished: int
    rounds_paid: int
    rounds_paid_but_not_opened: int
    epsilon: float | None
    epsilon_planned: float | None
    survivors: int | None
    seconds_per_round: float | None


def run_state(path: Path) -> RunState:
    """Read the state of a run: RunError where there is none, LedgerError where a ledger was changed or is torn."""
    folder = RunFolder.open(path)
    rows = folder.read_metrics()
    plan: dict[str, Any] = folder.read_plan().get("privacy", {}) if folder.plan.exists() else {}
    spent = RunSpending(0, 0, 0.0)
    if folder.ledger.exists():
        spent = run_spending(folder.path, delta_for(folder.path))
    begun = bool(rows or spent.charged)
    survivors = rows[-1].get("survivors") if rows else None
    return RunState(
        run=folder.run_id,
        state="finished" if folder.finished else "begun" if begun else "not begun",
        rounds_planned=plan.get("rounds"),
        rounds_finished=len(rows),
        rounds_paid=spent.charged,
        rounds_paid_but_not_opened=spent.charged - spent.opened,
        epsilon=spent.epsilon if begun and math.isfinite(spent.epsilon) else None,
        epsilon_planned=plan.get("target_epsilon"),
        survivors=None if survivors is None else int(survivors),
        seconds_per_round=sum(float(row.get("seconds", 0)) for row in rows) / len(rows) if rows else None,
    )


def last_events(path: Path, most: int = 12) -> list[dict[str, Any]]:
    """Return the last events of the server's log, newest first; a line that is torn is passed over."""
    try:
        lines = (path / "logs" / "server.jsonl").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines[: -most - 1 : -1]:
        try:
            found.append(load_json(line))
        except ValueError:
            continue
    return found
