"""``carefl-secure node``: a site's part in a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

node = typer.Typer(name="node", no_args_is_help=True, help="Run a site from its bundle.")


@node.callback()
def _group() -> None:
    """Keep ``start`` a command of its own."""


@node.command("start")
def start(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The site's bundle.")],
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Another address than the bundle's.")] = None,
    only: Annotated[
        Literal["agent", "supernode"] | None,
        typer.Option(help="One half; the other runs under another account or in a container."),
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the two halves meet; with --only.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder for logs and Flower's files; the bundle's own.")
    ] = None,
) -> None:
    """Start the site's agent and its SuperNode; ends with Ctrl-C.

    The agent holds keys, records, ledger and policy.yaml, and refuses what the policy does not
    allow. Flower runs only a relay.
    """
    from carefl_secure.deployment.site.services import run_node

    run_node(bundle, server, typer.echo, only=only, socket=socket, work=work)
