"""``carefl-secure provision``: one bundle per site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["provision"]


def provision(
    sites: Annotated[Path, typer.Argument(metavar="SITES.yaml", help="Who takes part.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="New folder for the bundles.")] = Path(
        "bundles"
    ),
) -> None:
    """Write a bundle for every site, for the server, and for who submits runs.

    Hand each site its own folder of sites/ and no other: it holds the site's private keys.
    """
    from carefl_secure.deployment.provisioning.provision import provision as write
    from carefl_secure.deployment.provisioning.sites import read_sites

    read = read_sites(sites)
    write(read, out)
    for name in (*read.clients, *read.helpers):
        typer.echo(f"{out / 'sites' / name}: for site {name} alone")
    typer.echo(f"{out / 'server'}: for the server")
    typer.echo(f"{out / 'submit'}: for who submits runs")
    typer.echo(f"valid for {read.days:g} days; delete this folder once all are handed out")
