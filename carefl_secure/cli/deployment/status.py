"""``carefl-secure status`` and ``doctor``: where a run stands, and whether this machine is fit to take part."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli.console import Json, Run, require_run, write_json
from carefl_secure.cli.reporter import figure
from carefl_secure.errors import ConfigError, EngineError


def status(
    run: Run,
    json: Json = False,
    watch: Annotated[float | None, typer.Option(metavar="SECONDS", min=0.1, help="Show it again so often.")] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics for Prometheus, and /health, until Ctrl-C.")
    ] = None,
) -> None:
    """Show how far a run is, what it has spent, and how many paid rounds were never opened.

    Epsilon is priced from the ledgers in the run folder; the one that holds most counts. "refused" names the parties
    that refused or were away in the last round. --watch ends with the run.
    """
    require_run(run)
    from carefl_secure.deployment.metrics import metrics_server, run_figures

    if serve is not None:
        host, _, port = serve.rpartition(":")
        if json or watch or not host or not port.isdecimal():
            raise ConfigError("write --serve HOST:PORT, as in 127.0.0.1:9464, without --json and --watch")
        with metrics_server(run, host, int(port)) as server:
            typer.echo(f"serving http://{host}:{server.server_port}/metrics and /health; stop it with Ctrl-C")
            server.serve_forever()
    while True:
        found = run_figures(run)
        if json:
            write_json(found)
        else:
            for name, value in found.items():
                typer.echo(f"{name.replace('_', ' '):28}{figure(name, value) or '-'}")
        if watch is None or found["state"] == "finished":
            return
        time.sleep(watch)


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
