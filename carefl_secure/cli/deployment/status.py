"""``carefl-secure status``: where a run stands, read from its folder."""

from __future__ import annotations

import json as json_text
import math
from typing import Any

import typer

from carefl_secure.cli.console import Json, Run, require_run
from carefl_secure.cli.figures import figure


def status(run: Run, json: Json = False) -> None:
    """Show how far a run is, what it has spent, and how many paid rounds were never opened.

    Epsilon is priced from the ledgers in the run folder; the one that holds most counts.
    """
    require_run(run)
    from carefl_secure.privacy.ledger.run_spending import RunSpending, run_spending
    from carefl_secure.privacy.ledger.statement import delta_for
    from carefl_secure.run_folder import RunFolder

    folder = RunFolder.open(run)
    rows = folder.read_metrics()
    plan: dict[str, Any] = folder.read_plan() if folder.plan.exists() else {}
    spent = RunSpending(0, 0, 0.0)
    if folder.ledger.exists():
        spent = run_spending(folder.path, delta_for(folder.path))
    begun = bool(rows or spent.charged)
    found = {
        "run": folder.run_id,
        "state": "finished" if folder.finished else "begun" if begun else "not begun",
        "rounds_planned": plan.get("privacy", {}).get("rounds"),
        "rounds_finished": len(rows),
        "rounds_paid": spent.charged,
        "rounds_paid_but_not_opened": spent.charged - spent.opened,
        "epsilon": spent.epsilon if begun and math.isfinite(spent.epsilon) else None,
        "survivors": rows[-1].get("survivors") if rows else None,
        "seconds_per_round": (sum(float(row.get("seconds", 0)) for row in rows) / len(rows) if rows else None),
    }
    if json:
        typer.echo(json_text.dumps(found, indent=2))
        return
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):28}{figure(name, value) or '-'}")
