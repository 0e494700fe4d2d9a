"""Write the bundles of a whole deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from carefl_secure.deployment.provisioning.certificates import (
    Authority,
    identity_key,
    node_key,
    write_private,
)
from carefl_secure.deployment.provisioning.policy import TEMPLATE
from carefl_secure.deployment.provisioning.service_files import write_service_files
from carefl_secure.deployment.provisioning.site_bundle import Manifest, Role, ServerManifest
from carefl_secure.deployment.provisioning.sites import Roster, Sites
from carefl_secure.errors import RunError

__all__ = ["provision"]


def provision(sites: Sites, out: Path) -> None:
    """Write one bundle per site, one for the server, and one for who submits runs.

    ``out`` must not exist yet; `RunError` when it does or cannot be written.

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
    clients = {name: identity_key() for name in sites.clients}
    helpers = {name: identity_key() for name in sites.helpers}
    submit_private, submit_public = identity_key()
    roster = Roster(
        tuple(public for _, public in clients.values()),
        tuple(public for _, public in helpers.values()),
        submit_public,
    )
    address = f"{sites.server}:{sites.port}"
    node_keys = {}
    parties: dict[Role, dict[str, tuple[bytes, bytes]]] = {"client": clients, "helper": helpers}
    for role, keys in parties.items():
        for index, (name, (private, _)) in enumerate(keys.items()):
            home = _folder(out / "sites" / name, roster, authority)
            manifest = Manifest(
                name, role, index, address, until.timestamp(), sites.clients.get(name), sites.name
            )
            _write_manifest(home, manifest)
            write_private(home / "identity.key", private)
            node_private, node_keys[name] = node_key()
            write_private(home / "node.key", node_private)
            (home / "policy.yaml").write_text(TEMPLATE.format(submitter=submit_public.hex()))
            _write_runtime(home, f"{sites.name} {name}", until)
            write_service_files(home, "node start", f"{sites.name} site {name}")
    _write_server(_folder(out / "server", roster, authority), sites, authority, until, node_keys)
    submit = _folder(out / "submit", roster, authority)
    write_private(submit / "submit.key", submit_private)
    (submit / "bundle.json").write_text(json.dumps({"server": address, "name": sites.name}) + "\n")


def _folder(home: Path, roster: Roster, authority: Authority) -> Path:
    """Make a bundle with what is public and the same for all."""
    home.mkdir(parents=True, mode=0o700)
    (home / "ca.crt").write_bytes(authority.certificate)
    (home / "roster.json").write_text(roster.to_json() + "\n")
    return home


def _write_manifest(home: Path, manifest: Manifest | ServerManifest) -> None:
    text = TypeAdapter(type(manifest)).dump_json(manifest, indent=2).decode()
    (home / "bundle.json").write_text(text + "\n")


def _write_server(
    home: Path, sites: Sites, authority: Authority, until: datetime, node_keys: Mapping[str, bytes]
) -> None:
    (home / "nodes").mkdir()
    for name, public in node_keys.items():
        (home / "nodes" / f"{name}.pub").write_bytes(public + b"\n")
    names = list(dict.fromkeys([sites.server, "localhost", "127.0.0.1"]))
    certificate, key = authority.server(names)
    (home / "server.pem").write_bytes(certificate)
    write_private(home / "server.key", key)
    manifest = ServerManifest(sites.name, sites.port, until.timestamp())
    _write_manifest(home, manifest)
    write_service_files(home, "server start", f"{sites.name} server")


def _write_runtime(home: Path, name: str, until: datetime) -> None:
    """Give a node TLS of its own towards the programs that Flower starts next to it."""
    own = Authority(name, until)
    certificate, key = own.server(["127.0.0.1", "localhost"])
    (home / "runtime-ca.crt").write_bytes(own.certificate)
    (home / "runtime.pem").write_bytes(certificate)
    write_private(home / "runtime.key", key)
