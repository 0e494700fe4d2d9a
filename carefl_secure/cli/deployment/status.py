"""``carefl-secure status`` and ``doctor``: where a run stands, and whether this machine is fit to take part."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from carefl_secure.cli.console import Json, Run, require_run, write_json
from carefl_secure.cli.reporter import figure
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


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A site's folder, or its SuperNode's: check what that half needs too."),
    ] = None,
    json: Json = False,
) -> None:
    """Check environment, entropy, clock, ports and TLS, and run every invariant on itself.

    With --bundle also: folder, certificates, policy and records of a site's agent; server and clock
    of its SuperNode; the socket between the two (CAREFL_SOCKET, or /run/carefl/agent.sock).
    """
    from carefl_secure.deployment.doctor import examine

    found = examine(bundle)
    if json:
        write_json([dataclasses.asdict(one) for one in found])
    else:
        for one in found:
            typer.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.seen}")
    bad = [one.name for one in found if not one.ok]
    if bad:
        raise EngineError(f"this machine is not fit: {', '.join(bad)}; see the lines above")
