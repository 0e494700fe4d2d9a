"""``carefl-secure server`` and ``submit``: the side that adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from carefl_secure.cli.figures import show, to_json
from carefl_secure.cli.reporter import RichReporter
from carefl_secure.config import load_config

__all__ = ["server", "submit"]

server = typer.Typer(name="server", no_args_is_help=True, help="Run the server from its kit.")

Words = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given repeatedly."),
]


@server.callback()
def _group() -> None:
    """Keep ``start`` a command of its own."""


@server.command("start")
def start(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="The server's kit.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start the SuperLink with TLS and register the kit's node keys; ends with Ctrl-C.

    Its one port also serves Flower's control interface, which asks for no password: put a proxy in
    front that lets sites reach /v1/fleet only (docs/deployment.md).
    """
    from carefl_secure.federation.engines.stations import run_server

    run_server(kit, host, typer.echo)


def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")],
    server: Annotated[Path, typer.Option(metavar="KIT", help="The server's kit.")],
    key: Annotated[Path, typer.Option(metavar="KIT", help="The submitter's kit.")],
    set_: Words = None,
    json: Annotated[bool, typer.Option("--json", help="Write the summary as JSON.")] = False,
) -> None:
    """Run a federation over the sites of a started server, from the server's machine."""
    settings = load_config(run, set_ or ())
    from carefl_secure.federation.engines.loopback import Remote
    from carefl_secure.federation.train import train

    with RichReporter(Console(stderr=True)) as reporter:
        summary = train(
            settings, reporter, None, lambda config, told: Remote(config, told, server, key)
        )
    if json:
        typer.echo(to_json(summary))
    else:
        show(summary, Console())
