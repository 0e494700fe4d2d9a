"""Where a run stands, from its folder: as figures, and as text for Prometheus that a small web server hands out."""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from carefl_secure.errors import CareflError, EngineError, RunError
from carefl_secure.privacy.ledger.statement import RunSpending, delta_for, run_spending
from carefl_secure.run_folder import RunFolder
from carefl_secure.web import Answer, web_server

_TEXT = "text/plain; version=0.0.4"  # of Prometheus
_STATES = ("not begun", "begun", "finished")


def run_figures(run: Path) -> dict[str, Any]:
    """Return a run's progress, spending and last missing parties; `RunError` or `LedgerError` for damaged files."""
    folder = RunFolder.open(run)
    rows = folder.read_metrics()
    plan = folder.read_plan().get("privacy") if folder.plan.exists() else {}
    if not isinstance(plan, dict):
        raise RunError(f"{folder.plan} lacks its privacy part; restore it from a copy")
    spent = RunSpending(0, 0, 0.0)
    if folder.ledger.exists():
        spent = run_spending(folder.path, delta_for(folder.path))
    begun = bool(rows or spent.charged)
    seconds = [float(one) for row in rows if isinstance(one := row.get("seconds"), int | float)]
    return {
        "run": folder.run_id,
        "state": _STATES[2 if folder.finished else begun],
        "rounds_planned": plan.get("rounds"),
        "rounds_finished": len(rows),
        "rounds_paid": spent.charged,
        "rounds_paid_but_not_opened": spent.charged - spent.opened,
        "epsilon": spent.epsilon if begun and math.isfinite(spent.epsilon) else None,
        "epsilon_planned": plan.get("target_epsilon"),
        "survivors": rows[-1].get("survivors") if rows else None,
        "min_survivors": plan.get("min_survivors"),
        "bytes_up": rows[-1].get("bytes_up") if rows else None,
        "bytes_down": rows[-1].get("bytes_down") if rows else None,
        "refused": _refused(folder),
        "seconds_per_round": (sum(seconds) / len(seconds) if seconds else None),
    }


def _refused(folder: RunFolder) -> str | None:
    """Name who refused or was away in the last round of the server's log."""
    found: dict[int, set[str]] = {}
    for event in folder.read_events():
        number, names = event.get("round"), event.get("refused")
        if event.get("event") == "phase" and isinstance(number, int) and isinstance(names, dict):
            found.setdefault(number, set()).update(names)
    return ", ".join(sorted(found[max(found)])) or None if found else None


def prometheus_text(figures: dict[str, Any]) -> str:
    """Return the figures as Prometheus text, labelled with the run; state: 0 (not begun), 1 (begun), 2 (finished)."""
    run = json.dumps(figures["run"])
    values = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    values["state"] = _STATES.index(figures["state"])
    lines = [f"# TYPE carefl_{name} gauge\ncarefl_{name}{{run={run}}} {value}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def metrics_server(run: Path, host: str, port: int) -> ThreadingHTTPServer:
    """Return a web server whose ``/metrics`` is `prometheus_text`, and whose ``/health`` says that it can be read.

    It has no TLS and asks nobody who they are, as is usual: keep it on the loopback or inside. Port 0 takes a free
    one. Raises `EngineError` where it cannot listen there.
    """

    def answer(request: BaseHTTPRequestHandler) -> Answer:
        if request.path not in ("/metrics", "/health"):
            return 404, _TEXT, "no such page; there are /metrics and /health\n"
        try:
            text = prometheus_text(run_figures(run))
        except (CareflError, OSError) as error:
            return 503, _TEXT, f"{error}\n"
        return 200, _TEXT, text if request.path == "/metrics" else "ok\n"

    try:
        return web_server(host, port, answer)
    except OSError as error:
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
