"""``carefl-secure provision``: one bundle per site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.errors import ConfigError


def provision(
    sites: Annotated[Path, typer.Argument(metavar="SITES.yaml", help="Who takes part.")],
    keys: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder of the parties' public halves, NAME.pub.json.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="New folder for the bundles.")] = Path("bundles"),
    rehearsal: Annotated[
        bool, typer.Option(help="Make all keys here, in place of --keys: to try a deployment, only.")
    ] = False,
) -> None:
    """Write a bundle for every site and one for the server, from the parties' public halves.

    Sites, helpers and submitters make their keys with "site init" and "submitter init". Their
    bundles hold nothing secret.
    """
    from carefl_secure.deployment.provisioning import provision as writing
    from carefl_secure.deployment.provisioning.sites import REHEARSAL, read_sites

    if rehearsal == (keys is not None):
        raise ConfigError("give --keys, the folder with the public halves that the parties made, or --rehearsal")
    read = read_sites(sites)
    if keys is None:
        roster = writing.rehearse(read, out)
    else:
        roster = writing.provision(read, writing.read_halves(read, keys), out)
    for name in (*read.clients, *read.helpers):
        typer.echo(f"{out / 'sites' / name}: for site {name}")
    typer.echo(f"{out / 'server'}: for the server alone; it holds the server's TLS key")
    if rehearsal:
        typer.echo(REHEARSAL)
    typer.echo(f"the roster's fingerprint: {roster.fingerprint}")
    typer.echo(f"valid for {read.days:g} days")
