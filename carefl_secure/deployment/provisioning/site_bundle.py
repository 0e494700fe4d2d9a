"""What a site needs to take part, and nothing of anybody else: one folder per party.

``bundle.json`` (name, role, place, server, expiry), ``roster.json`` (public keys of all),
``ca.crt``, ``policy.yaml``, and three secrets of the site's own: ``node.key``, ``identity.key``,
and later its ``ledgers/``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import yaml

from carefl_secure.deployment.provisioning.certificates import (
    Authority,
    identity_key,
    node_key,
    write_private,
)
from carefl_secure.deployment.provisioning.policy import TEMPLATE
from carefl_secure.errors import ConfigError, RunError

__all__ = ["PARTS", "Roster", "SiteBundle", "Sites", "provision", "read_sites"]

_ROLES = ("client", "helper")
PARTS: Mapping[str, tuple[str, ...]] = {
    "agent": ("identity.key", "policy.yaml"),
    "supernode": ("ca.crt", "node.key", "runtime-ca.crt", "runtime.pem", "runtime.key"),
}
"""What each half of a site needs beside ``bundle.json`` and ``roster.json``."""


@dataclass(frozen=True)
class Sites:
    """Who takes part in a deployment; the content of ``sites.yaml``.

    Parameters
    ----------
    name : str
        Name of the deployment.
    server : str
        Host of the SuperLink, as the sites reach it.
    port : int
        Its one port.
    clients : mapping of str to str or None
        Folder of images at each site; None where the run's own data are shared out (simulation).
    helpers : tuple of str
        Committee members, or the one key holder.
    days : float
        For how long bundles and certificates hold.
    """

    name: str
    server: str
    port: int
    clients: Mapping[str, str | None]
    helpers: tuple[str, ...] = ()
    days: float = 365.0


def read_sites(path: Path) -> Sites:
    """Read ``sites.yaml``.

    Raises
    ------
    ConfigError
        When a key is unknown or missing, or a name is used twice.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    allowed = {"name", "server", "port", "clients", "helpers", "days"}
    if not isinstance(raw, dict) or set(raw) - allowed:
        raise ConfigError(f"{path} may hold {', '.join(sorted(allowed))} and nothing else")
    clients = raw.get("clients")
    if not isinstance(clients, dict) or not clients:
        raise ConfigError(f"{path}: clients maps the name of each site to its folder of images")
    helpers = tuple(str(name) for name in raw.get("helpers") or ())
    names = [*map(str, clients), *helpers]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: every site needs a name of its own")
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{path}: {name!r} is no name; use letters, digits, - and _")
    port, days = raw.get("port", 9092), raw.get("days", 365)
    if type(port) is not int or not 1 <= port <= 65535:
        raise ConfigError(f"{path}: port must be a number from 1 to 65535")
    if type(days) not in (int, float) or not days > 0:
        raise ConfigError(f"{path}: days must be a positive number")
    return Sites(
        name=str(raw.get("name", "carefl")),
        server=str(raw.get("server", "localhost")),
        port=port,
        clients={str(k): None if v is None else str(v) for k, v in clients.items()},
        helpers=helpers,
        days=float(days),
    )


@dataclass(frozen=True)
class Roster:
    """Public keys of everybody, 32 bytes each; the same in every bundle."""

    clients: tuple[bytes, ...]
    helpers: tuple[bytes, ...]
    submitter: bytes

    def to_json(self) -> str:
        """Return the keys as hexadecimal text."""
        whole = {
            "clients": [key.hex() for key in self.clients],
            "helpers": [key.hex() for key in self.helpers],
            "submitter": self.submitter.hex(),
        }
        return json.dumps(whole, indent=2)

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read what `to_json` returned.

        Raises
        ------
        RunError
            When it is missing or damaged.
        """
        try:
            raw = json.loads(path.read_text())
            return cls(
                tuple(bytes.fromhex(key) for key in raw["clients"]),
                tuple(bytes.fromhex(key) for key in raw["helpers"]),
                bytes.fromhex(raw["submitter"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is no roster; ask for a new bundle") from error


@dataclass(frozen=True)
class SiteBundle:
    """One party's bundle.

    Parameters
    ----------
    path : Path
    name, role : str
    index : int
        Place in the roster.
    server : str
        ``host:port`` of the SuperLink.
    expires : float
        Seconds since 1970.
    data : str or None
        Folder of the site's images; None where the run's own data are shared out.
    roster : Roster
    """

    path: Path
    name: str
    role: str
    index: int
    server: str
    expires: float
    data: str | None
    roster: Roster

    @classmethod
    def open(
        cls,
        path: Path,
        now: float | None = None,
        part: Literal["agent", "supernode"] | None = None,
    ) -> SiteBundle:
        """Read a bundle, or the half of one that a part of a site needs.

        Parameters
        ----------
        path : Path
        now : float, optional
            Seconds since 1970; the clock by default.
        part : {"agent", "supernode"}, optional
            Who reads it; both by default.

        Raises
        ------
        RunError
            When it is incomplete, damaged or expired.
        """
        try:
            raw = json.loads((path / "bundle.json").read_text())
            bundle = cls(
                path.resolve(),
                str(raw["name"]),
                str(raw["role"]),
                int(raw["index"]),
                str(raw["server"]),
                float(raw["expires"]),
                raw["data"],
                Roster.read(path / "roster.json"),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is no bundle: {error}; ask for a new one") from error
        if bundle.role not in _ROLES:
            raise RunError(f"{path} is a bundle for {bundle.role!r}, which no node can be")
        wanted = [name for one, names in PARTS.items() if part in (None, one) for name in names]
        for name in wanted:
            if not (path / name).is_file():
                raise RunError(f"{path} lacks {name}; ask for a new bundle")
        if (time.time() if now is None else now) >= bundle.expires:
            day = datetime.fromtimestamp(bundle.expires, UTC)
            raise RunError(
                f"the bundle {path} expired on {day:%Y-%m-%d %H:%M} UTC; ask for a new one"
            )
        return bundle


def provision(sites: Sites, out: Path, server_hosts: Sequence[str] = ()) -> None:
    """Write one bundle per site, one for the server, and one for who submits runs.

    Parameters
    ----------
    sites : Sites
    out : Path
        A folder that does not exist yet.
    server_hosts : sequence of str, optional
        Further names in the server's certificate.

    Raises
    ------
    RunError
        When the folder exists or cannot be written.

    Guarantees
    ----------
    A private key stands in its owner's folder and nowhere else. The authority's key is never
    written: new certificates need new bundles.
    """
    try:
        out.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror}; choose a new folder") from error
    until = datetime.now(UTC) + timedelta(days=sites.days)
    authority = Authority(sites.name, until)
    parties = [("client", name) for name in sites.clients]
    parties += [("helper", name) for name in sites.helpers]
    keys = [identity_key() for _ in parties]
    submit_private, submit_public = identity_key()
    clients = len(sites.clients)
    roster = Roster(
        tuple(public for _, public in keys[:clients]),
        tuple(public for _, public in keys[clients:]),
        submit_public,
    )
    address = f"{sites.server}:{sites.port}"
    public_keys = {}
    for place, ((role, name), (private, _)) in enumerate(zip(parties, keys, strict=True)):
        index = place if role == "client" else place - clients
        home = out / "sites" / name
        home.mkdir(parents=True, mode=0o700)
        node_private, public_keys[name] = node_key()
        about = {
            "name": name,
            "role": role,
            "index": index,
            "server": address,
            "expires": until.timestamp(),
            "data": sites.clients.get(name),
            "deployment": sites.name,
        }
        (home / "bundle.json").write_text(json.dumps(about, indent=2) + "\n")
        write_private(home / "node.key", node_private)
        write_private(home / "identity.key", private)
        (home / "policy.yaml").write_text(TEMPLATE.format(submitter=submit_public.hex()))
        _runtime(home, f"{sites.name} {name}", until)
        _public_part(home, roster, authority)
        _starters(home, f"node start {_HERE}", f"{sites.name} site {name}")
    _server_bundle(out / "server", sites, authority, until, roster, server_hosts, public_keys)
    submit = out / "submit"
    submit.mkdir(mode=0o700)
    write_private(submit / "submit.key", submit_private)
    _public_part(submit, roster, authority)
    (submit / "bundle.json").write_text(json.dumps({"server": address, "name": sites.name}) + "\n")


_HERE = '"$(dirname "$0")"'


def _server_bundle(
    home: Path,
    sites: Sites,
    authority: Authority,
    until: datetime,
    roster: Roster,
    hosts: Sequence[str],
    public_keys: Mapping[str, bytes],
) -> None:
    home.mkdir(mode=0o700)
    (home / "nodes").mkdir()
    for name, public in public_keys.items():
        (home / "nodes" / f"{name}.pub").write_bytes(public + b"\n")
    names = list(dict.fromkeys([sites.server, *hosts, "localhost", "127.0.0.1"]))
    certificate, key = authority.server(names)
    (home / "server.pem").write_bytes(certificate)
    write_private(home / "server.key", key)
    _public_part(home, roster, authority)
    about = {
        "name": sites.name,
        "port": sites.port,
        "expires": until.timestamp(),
        "id": secrets.token_hex(8),
    }
    (home / "bundle.json").write_text(json.dumps(about) + "\n")
    _starters(home, f"server start {_HERE}", f"{sites.name} server")


def _runtime(home: Path, name: str, until: datetime) -> None:
    """Give a node TLS of its own towards the programs that Flower starts beside it."""
    own = Authority(name, until)
    certificate, key = own.server(["127.0.0.1", "localhost"])
    (home / "runtime-ca.crt").write_bytes(own.certificate)
    (home / "runtime.pem").write_bytes(certificate)
    write_private(home / "runtime.key", key)


def _public_part(home: Path, roster: Roster, authority: Authority) -> None:
    (home / "ca.crt").write_bytes(authority.certificate)
    (home / "roster.json").write_text(roster.to_json() + "\n")


_UNIT = """\
[Unit]
Description=CAREFL {title}
Wants=network-online.target
After=network-online.target

[Service]
# Make an account "carefl", install the package at /opt/carefl, and copy the bundle to
# /var/lib/carefl, owned by that account.
User=carefl
WorkingDirectory=/var/lib/carefl
Environment=PATH=/opt/carefl/bin:/usr/bin:/bin HOME=/var/lib/carefl
ExecStart=/bin/sh /var/lib/carefl/start.sh
# It ends its own processes, and with 130.
KillMode=mixed
TimeoutStopSec=30
SuccessExitStatus=130
Restart=on-failure
RestartSec=10
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=/var/lib/carefl

[Install]
WantedBy=multi-user.target
"""


def _starters(home: Path, command: str, title: str) -> None:
    """Write a start script and a systemd unit; neither holds a secret."""
    script = home / "start.sh"
    script.write_text(f'#!/bin/sh\nset -eu\nexec carefl-secure {command} "$@"\n')
    script.chmod(0o755)
    (home / "carefl.service").write_text(_UNIT.format(title=title))
