"""A page that follows a run: a server for this machine alone, which reads and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from carefl_secure.errors import CareflError, EngineError
from carefl_secure.report.render.page import round_charts
from carefl_secure.report.render.templates import environment
from carefl_secure.report.sections import round_line
from carefl_secure.rounding import finite, round_up, signal_to_noise
from carefl_secure.run_folder import RunFolder
from carefl_secure.web import Answer, web_server

_LOCAL = "127.0.0.1"
_SHOWN = 12
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def snapshot(run: Path, read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the page shows: strict JSON, with the charts as SVG; ``error`` where the run cannot be read."""
    try:
        state, folder = read(), RunFolder.open(run)
        rows = folder.read_metrics()
        return {**_shown(state, rows), "events": [_event(one) for one in folder.read_events()[: -_SHOWN - 1 : -1]]}
    except CareflError as error:
        return {"error": str(error)}
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"metrics.jsonl, plan.json or logs/server.jsonl of {run} is damaged: {error}; restore it"}


def _shown(state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the page shows of a run's figures; ``epsilon`` of an unprotected round is a word."""
    price, planned = finite(state["epsilon"]), finite(state["epsilon_planned"])
    prices = [row.get("epsilon") for row in rows]
    lines = [
        round_line(row, finite(float(one)) if isinstance(one, int | float) else None)
        for row, one in zip(rows, prices, strict=True)
    ]
    return {
        "error": None,
        "state": state,
        "epsilon": None if price is None else round_up(price),
        "share": None if price is None or not planned else min(1.0, price / planned),
        "charts": round_charts(lines, planned),
        "rounds": [
            {
                "round": line.round,
                "epsilon": "–" if line.epsilon is None else round_up(line.epsilon),
                **{name: f"{value:.3f}" for name, value in line.metrics.items() if name in ("mAP", "macro_f1")},
                "signal / noise": "–"
                if "noise_norm" not in row
                else signal_to_noise(float(row["gradient_norm"]), float(row["noise_norm"]), banded="bands" in row),
                "survivors": f"{line.survivors} of {row.get('clients', '?')}" if line.survivors is not None else "–",
            }
            for line, row in list(zip(lines, rows, strict=True))[: -_SHOWN - 1 : -1]
        ],
    }


def _event(event: Mapping[str, Any]) -> str:
    """Write one line of the server's log as a sentence."""
    clock = f"{datetime.fromtimestamp(float(event.get('time', 0.0)), UTC):%H:%M:%S} UTC"
    facts = {name: value for name, value in event.items() if name not in ("time", "event") and value not in ({}, None)}
    if isinstance(sites := facts.pop("bytes_up_down", None), Mapping):  # one pair for each site
        up, down = (f"{sum(way):,}" for way in zip(*sites.values(), strict=True))
        facts |= {"bytes up": up, "bytes down": down}
    return f"{clock}  {event.get('event', '?')}  " + ", ".join(f"{name} {value}" for name, value in facts.items())


def watching(run: Path, port: int, read: Callable[[], Mapping[str, Any]]) -> ThreadingHTTPServer:
    """Return a server of the page on 127.0.0.1, which the caller runs and closes; port 0 takes a free one.

    EngineError is raised where the port is taken or not allowed.

    Guarantees
    ----------
    Only this machine can connect. A request that names another host is refused, so that no page of another site
    reaches it through a name that points here. It answers GET for three fixed paths, and writes nothing.
    """
    page = environment(html=True).get_template("watch.html.j2").render(run=run.name)
    script = environment(html=False).get_template("watch.js").render()

    def answer(request: BaseHTTPRequestHandler) -> Answer:
        own = request.connection.getsockname()[1]
        if request.headers.get("Host") not in (f"{_LOCAL}:{own}", f"localhost:{own}"):
            return 403, "text/plain", "this page is for this machine alone\n"
        if request.path == "/":
            return 200, "text/html", page
        if request.path == "/watch.js":
            return 200, "text/javascript", script
        if request.path == "/state.json":
            return 200, "application/json", json.dumps(snapshot(run, read), allow_nan=False)
        return 404, "text/plain", "there is no such page\n"

    try:
        return web_server(_LOCAL, port, answer, _HEADERS)
    except OSError as error:
        raise EngineError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error
