"""``carefl-secure status``: where a run stands, read from its folder."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["status"]


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Tell how far a run is, what it has spent, and how many paid rounds were never opened."""
    from carefl_secure.privacy import Ledger
    from carefl_secure.run_folder import RunFolder

    folder = RunFolder.open(run)
    rows = folder.read_metrics()
    plan: dict[str, Any] = folder.read_plan() if folder.plan.exists() else {}
    planned = plan.get("privacy", {}).get("rounds")
    entries = Ledger(folder.ledger).entries() if folder.ledger.exists() else ()
    paid = sum(e.kind == "spend" or e.payload.get("unprotected") is True for e in entries)
    opened = sum(e.kind == "release" for e in entries)
    saved = any(folder.adapter.iterdir()) if folder.adapter.is_dir() else False
    found = {
        "run": folder.run_id,
        "state": "finished" if saved else "begun" if rows or paid else "not begun",
        "rounds_planned": planned,
        "rounds_finished": len(rows),
        "rounds_paid": paid,
        "rounds_paid_but_not_opened": paid - opened,
        "epsilon": rows[-1].get("epsilon") if rows else None,
        "survivors": rows[-1].get("survivors") if rows else None,
        "seconds_per_round": (
            sum(float(row.get("seconds", 0)) for row in rows) / len(rows) if rows else None
        ),
    }
    if json:
        typer.echo(json_text.dumps(found, indent=2))
        return
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):28}{'-' if value is None else value}")
