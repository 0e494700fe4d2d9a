"""``carefl-secure server``, ``node`` and ``submit``: the side that adds up, and a site's part in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from carefl_secure.cli.console import Words, Yes, confirmation, group, require_run
from carefl_secure.cli.reporter import RichReporter, show, to_json
from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError
from carefl_secure.run_folder import Interrupted

server = group("server", "Run the server from its bundle.")

Health = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where Flower's health service listens: gRPC, without TLS.")
]
_AT_SITES = ("simulation.dropout=0", "data.at_sites=true")


@server.command("start")
def start(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The server's bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Another port than the bundle's, for use behind a proxy.")] = None,
    health: Health = None,
) -> None:
    """Start the SuperLink with TLS and register the bundle's node keys; ends with Ctrl-C.

    Its one port also serves Flower's control interface, which asks for the key in the bundle: put a
    proxy in front that lets sites reach /v1/fleet only (configs/deploy/nginx.conf).
    """
    from carefl_secure.deployment.site.services import run_server

    run_server(bundle, host, typer.echo, port, health)


def submit(
    server: Annotated[Path, typer.Option(metavar="BUNDLE", help="The server's bundle.")],
    key: Annotated[Path, typer.Option(metavar="BUNDLE", help="The submitter's bundle.")],
    run: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")] = None,
    set_: Words = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Resume a run, with its own settings.")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds that the sites get to agree to the run.")] = 1800.0,
    yes: Yes = False,
    json: Annotated[bool, typer.Option("--json", help="Write the summary as JSON.")] = False,
) -> None:
    """Run a federation over the sites of a started server, from the server's machine.

    Sets data.at_sites, and simulation.dropout to 0: nobody's absence is simulated here.
    """
    if resume is None:
        if run is None:
            raise ConfigError("name a RUN.yaml, or a run folder with --resume")
        settings = load_config(run, [*(set_ or ()), *_AT_SITES])
    elif run is not None or set_:
        raise ConfigError("--resume takes the settings of the run it names; leave the others out")
    else:
        require_run(resume)
        settings = load_config(resume / "config.yaml", ())
    from carefl_secure.deployment.superlink.remote import Remote
    from carefl_secure.runs.train import train

    try:
        with RichReporter(Console(stderr=True)) as reporter:
            sites = Remote(settings, reporter, server, key, patience)
            summary = train(settings, reporter, resume, lambda *_: sites, confirmation(yes))
    except Interrupted as stop:
        stop.again = f"carefl-secure submit --server {server} --key {key} --resume {stop.folder}"
        raise
    if json:
        typer.echo(to_json(summary))
    else:
        show(summary)


node = group("node", "Run a site from its bundle.")


@node.command("start")
def start_node(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The site's bundle.")],
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Another address than the bundle's.")] = None,
    only: Annotated[
        Literal["agent", "supernode"] | None,
        typer.Option(help="One half; the other runs under another account or in a container."),
    ] = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Where the halves meet; with --only.")] = None,
    work: Annotated[Path | None, typer.Option(metavar="DIR", help="Logs and Flower's files; else the bundle.")] = None,
    health: Health = None,
) -> None:
    """Start the site's agent and its SuperNode; ends with Ctrl-C.

    The agent holds keys, records, ledger and policy.yaml, and refuses what the policy forbids. Flower runs a relay.
    """
    from carefl_secure.deployment.site.services import run_node

    run_node(bundle, server, typer.echo, only=only, socket=socket, work=work, health=health)
