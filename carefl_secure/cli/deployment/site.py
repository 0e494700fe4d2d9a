"""``carefl-secure site``, ``submitter`` and ``provision``: a party's own keys, and bundles of the public halves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from carefl_secure.cli.console import group
from carefl_secure.errors import ConfigError, RunError

if TYPE_CHECKING:
    from carefl_secure.deployment.provisioning.party_keys import PublicHalf

site = group("site", "Make a site's keys; join a deployment.")
submitter = group("submitter", "Make a submitter's keys.")

Home = Annotated[Path, typer.Argument(metavar="DIR", help="The party's own folder.")]
PartyName = Annotated[str | None, typer.Option(metavar="NAME", help="Its name; by default that of the folder.")]


@site.command("init")
def init(
    home: Home,
    name: PartyName = None,
    role: Annotated[
        Literal["client", "helper"],
        typer.Option(help="client: has records; helper: a committee member or the key holder."),
    ] = "client",
    restore: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A backup of the folder that was lost: its ledgers and policy.")
    ] = None,
) -> None:
    """Make the site's private keys, on the site's own machine, and a public half to hand out."""
    from carefl_secure.deployment.provisioning.party_keys import make_keys, restore_state

    if restore is not None:
        restore_state(home, restore)
    _tell(home, make_keys(home, name or home.resolve().name, role))


@site.command("rotate")
def rotate(home: Home) -> None:
    """Replace the site's private keys; ledgers and policy stay.

    The site takes part again once all sites have joined a roster with the new keys.
    """
    from carefl_secure.deployment.provisioning.party_keys import replace_keys

    _tell(home, replace_keys(home))


@site.command("join")
def join(
    home: Home,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What was provisioned.")],
    fingerprint: Annotated[str | None, typer.Option(metavar="HEX", help="The fingerprint that you compared.")] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Folder of this site's records.")] = None,
) -> None:
    """Check a provisioned bundle, confirm its roster, and complete the site's folder.

    Every site compares the fingerprint with the others, not with who provisioned. Another roster
    is refused until its fingerprint is confirmed; the same one, with new certificates, is not.
    """
    from carefl_secure.deployment.provisioning.join import join as check
    from carefl_secure.deployment.provisioning.party_keys import fingerprint as of

    found = check(home, bundle, fingerprint, data)
    for role in ("client", "helper", "submitter"):
        for one in found.roster.of(role):
            typer.echo(f"{role} {one.name}: {of(one.key)}")
    typer.echo(f"records: {found.data or 'none'}; server: {found.server}")
    listed = found.read_policy().submitters
    for one in found.roster.submitters:
        if one.key.hex() not in listed:
            typer.echo(f"{one.name} may not submit here; add {one.key.hex()} to policy.yaml if so")
    typer.echo(f"joined {found.roster.deployment}: {found.roster.fingerprint}")


@submitter.command("init")
def init_submitter(home: Home, name: PartyName = None) -> None:
    """Make the private key that signs proposed runs, and a public half to hand out."""
    from carefl_secure.deployment.provisioning.party_keys import make_keys

    _tell(home, make_keys(home, name or home.resolve().name, "submitter"))


def _tell(home: Path, half: PublicHalf) -> None:
    typer.echo(f"{home / half.name}.pub.json: hand out this file, and none of the others")
    typer.echo(f"fingerprint of {half.role} {half.name}: {half.fingerprint}")


def provision(
    sites: Annotated[Path, typer.Argument(metavar="SITES.yaml", help="Who takes part.")],
    keys: Annotated[Path | None, typer.Option(metavar="PATH", help="Folder of public halves, NAME.pub.json.")] = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="New folder for the bundles.")] = Path("bundles"),
    rehearsal: Annotated[bool, typer.Option(help="Make all keys here, without --keys: for a trial only.")] = False,
    half: Annotated[
        Path | None,
        typer.Option(metavar="NAME.pub.json", help="A party that is new, or has new keys: it goes into --keys."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Folder of the records of --half.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="A party that leaves.")] = None,
) -> None:
    """Write a bundle for every site and one for the server, from the parties' public halves.

    Sites, helpers and submitters make their keys with "site init" and "submitter init". Bundles hold no secret. --half
    and --remove change SITES.yaml, whose comments are lost, and the folder of public halves, before anything is made.
    """
    from carefl_secure.config import default_min_survivors
    from carefl_secure.deployment.provisioning import provision as writing
    from carefl_secure.deployment.provisioning.sites import REHEARSAL, change_sites, read_sites

    if rehearsal == (keys is not None):
        raise ConfigError("give --keys, the folder with the public halves that the parties made, or --rehearsal")
    if rehearsal and (half or remove):
        raise ConfigError("--half and --remove change the parties of --keys; in a rehearsal edit the list of sites")
    if out.exists():
        raise RunError(f"{out} exists already; choose a new folder")
    read = change_sites(sites, keys, half, data, remove) if keys and (half or remove) else read_sites(sites)
    if keys is None:
        roster = writing.rehearse(read, out)
    else:
        roster = writing.provision(read, writing.read_halves(read, keys), out)
    for name in (*read.clients, *read.helpers):
        typer.echo(f"{out / 'sites' / name}: for site {name}")
    typer.echo(f"{out / 'server'}: for the server alone; it holds the server's TLS key")
    if rehearsal:
        typer.echo(REHEARSAL)
    clients = len(read.clients)
    least = default_min_survivors(clients)
    away = f"{clients - least} may be away" if clients > least else "every site is needed in every round"
    typer.echo(f"of {clients} sites with records a sum needs at least {least}: {away}")
    typer.echo(f"the roster's fingerprint: {roster.fingerprint}")
    typer.echo(f"valid for {read.days:g} days")
