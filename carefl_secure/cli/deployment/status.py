"""``carefl-secure status`` and ``doctor``: where a run stands, and whether this machine is fit to take part."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import typer

from carefl_secure.cli.console import Json, Run, require_run, write_json
from carefl_secure.cli.figures import figure
from carefl_secure.errors import EngineError


def status(run: Run, json: Json = False) -> None:
    """Show how far a run is, what it has spent, and how many paid rounds were never opened.

    Epsilon is priced from the ledgers in the run folder; the one that holds most counts.
    """
    require_run(run)
    from carefl_secure.privacy.ledger.statement import RunSpending, delta_for, run_spending
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
        write_json(found)
        return
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' '):28}{figure(name, value) or '-'}")


def doctor(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Check environment, entropy, clock, ports and TLS, and run every invariant on itself."""
    from carefl_secure.deployment.doctor import examine

    found = examine()
    if json:
        write_json([dataclasses.asdict(one) for one in found])
    else:
        for one in found:
            typer.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.seen}")
    bad = [one.name for one in found if not one.ok]
    if bad:
        raise EngineError(f"this machine is not fit: {', '.join(bad)}; see the lines above")
