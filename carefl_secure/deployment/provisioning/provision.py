"""Write what all parties of a deployment share, from the public halves that they hand out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from carefl_secure.deployment.provisioning.certificates import Authority, write_private
from carefl_secure.deployment.provisioning.join import install
from carefl_secure.deployment.provisioning.party_keys import PartyRole, PublicHalf, make_keys
from carefl_secure.deployment.provisioning.service_files import write_server_files
from carefl_secure.deployment.provisioning.site_bundle import Manifest, Role, ServerManifest
from carefl_secure.deployment.provisioning.sites import Member, Roster, Sites
from carefl_secure.errors import RunError


def read_halves(sites: Sites, folder: Path) -> dict[str, PublicHalf]:
    """Return all public halves; `RunError` if one is missing, damaged, badly signed, another's or of a used key."""
    halves: dict[str, PublicHalf] = {}
    owners: dict[str, str] = {}
    for name, role in _roles(sites).items():
        half = PublicHalf.read(folder / f"{name}.pub.json")
        if (half.name, half.role) != (name, role):
            raise RunError(
                f"{folder / name}.pub.json is of {half.role} {half.name}, not of {role} {name}; "
                "compare the list of sites with what the parties handed out"
            )
        for key in filter(None, (half.identity.hex(), half.node)):
            if (other := owners.setdefault(key, name)) != name:
                raise RunError(
                    f"{other} and {name} handed out the same key; each makes its own with carefl-secure site init"
                )
        halves[name] = half
    return halves


def provision(sites: Sites, halves: Mapping[str, PublicHalf], out: Path) -> Roster:
    """Write one bundle per site and one for the server; return the roster.

    ``halves`` are those of `read_halves`. ``out`` must not exist yet; `RunError` when it does or cannot be written.

    Guarantees
    ----------
    No private key of a site, helper or submitter is made or read here: a site's bundle is public. The server's bundle
    holds the server's TLS key and no other. The authority's key is never written: new certificates need new bundles.
    """
    _make(out)
    return _write(sites, halves, out, rehearsal=False)


def rehearse(sites: Sites, out: Path) -> Roster:
    """Make the keys of all parties in one place and write everything that they need to start.

    For tests and for trying a deployment on one machine. As `provision`, but ``out`` holds whole folders of sites, and
    the submitters' in ``out/submit`` (of one submitter) or ``out/submitters/NAME``.

    Guarantees
    ----------
    A private key stands in its owner's folder and nowhere else. Whoever ran this held them all, so
    the roster says that it is a rehearsal, and no site joins it with keys of its own.
    """
    _make(out)
    halves = {}
    for name, role in _roles(sites).items():
        home = out / "sites" / name
        if role == "submitter":
            home = out / "submit" if len(sites.submitters) == 1 else out / "submitters" / name
        halves[name] = make_keys(home, name, role)
    roster = _write(sites, halves, out, rehearsal=True)
    for name in (*sites.clients, *sites.helpers):
        install(out / "sites" / name, out / "sites" / name)
    return roster


def _roles(sites: Sites) -> dict[str, PartyRole]:
    """Return every party with its role, in the order of the roster."""
    return {
        **dict.fromkeys(sites.clients, "client"),
        **dict.fromkeys(sites.helpers, "helper"),
        **dict.fromkeys(sites.submitters, "submitter"),
    }


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror}; choose a new folder") from error


def _write(sites: Sites, halves: Mapping[str, PublicHalf], out: Path, *, rehearsal: bool) -> Roster:
    until = datetime.now(UTC) + timedelta(days=sites.days)
    authority = Authority(sites.name, until)
    clients, helpers, submitters = (
        tuple(Member(name, halves[name].identity) for name in names)
        for names in (sites.clients, sites.helpers, sites.submitters)
    )
    roster = Roster(sites.name, clients, helpers, submitters, rehearsal)
    server = _folder(out / "server", roster, authority)
    (server / "nodes").mkdir()
    parties: tuple[tuple[Role, tuple[Member, ...]], ...] = (("client", clients), ("helper", helpers))
    for role, members in parties:
        for index, name in enumerate(one.name for one in members):
            home = _folder(out / "sites" / name, roster, authority)
            address, data = f"{sites.server}:{sites.port}", sites.clients.get(name)
            about = Manifest(name, role, index, address, until.timestamp(), data, sites.name)
            (home / "bundle.json").write_bytes(TypeAdapter(Manifest).dump_json(about, indent=2))
            (server / "nodes" / f"{name}.pub").write_text(halves[name].node + "\n")
    certificate, key = authority.server(list(dict.fromkeys([sites.server, "localhost", "127.0.0.1"])))
    (server / "server.pem").write_bytes(certificate)
    write_private(server / "server.key", key)
    own = ServerManifest(sites.name, sites.port, until.timestamp())
    (server / "bundle.json").write_bytes(TypeAdapter(ServerManifest).dump_json(own, indent=2))
    write_server_files(server, f"{sites.name} server")
    return roster


def _folder(home: Path, roster: Roster, authority: Authority) -> Path:
    """Make a bundle with what is public and the same for all."""
    home.mkdir(parents=True, mode=0o700, exist_ok=True)
    (home / "ca.crt").write_bytes(authority.certificate)
    (home / "roster.json").write_text(roster.to_json() + "\n")
    return home
