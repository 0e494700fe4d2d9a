"""A site joins a deployment: it checks and confirms the roster, and completes its own folder."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from carefl_secure.deployment.provisioning.certificates import Authority, read_identity, write_private
from carefl_secure.deployment.provisioning.documents import read_json
from carefl_secure.deployment.provisioning.party_keys import SUPERNODE, own_half, plain_fingerprint
from carefl_secure.deployment.provisioning.policy import TEMPLATE, read_policy
from carefl_secure.deployment.provisioning.service_files import write_site_files
from carefl_secure.deployment.provisioning.site_bundle import Manifest, SiteBundle
from carefl_secure.deployment.provisioning.sites import REHEARSAL, Member, Roster
from carefl_secure.errors import ConfigError, PolicyError, RunError

_NOTE = "".join(f"# {line}\n" for line in textwrap.wrap(f"This is {REHEARSAL}.", 98))


def join(home: Path, bundle: Path, confirmed: str | None, data: str | None = None) -> SiteBundle:
    """Complete a site's folder from a provisioned bundle, for the first time or anew.

    ``confirmed`` is the roster's fingerprint as a person compared it; it may be left out where the site has confirmed
    the same roster before. ``data`` is the folder of the site's records; by default what the site named before, or
    else what the bundle names. Ledgers, and a policy but for its clause ``roster``, stay as they are.

    Raises `ConfigError` when nobody confirmed the roster, `PolicyError` (clause ``roster``) when
    it is another than the confirmed one, does not have this site's key or is a rehearsal's, and
    `RunError` for a damaged or expired bundle.

    Guarantees
    ----------
    Where every site compares this fingerprint with the others', all of them hold one roster, and each has found its
    own key there. So every key belongs to the site that it is listed for, whatever whoever provisioned it did. This
    assumes that people compare by another way than the one by which the bundles came.
    """
    own, roster = own_half(home), Roster.read(bundle / "roster.json")
    manifest = read_json(bundle / "bundle.json", Manifest, RunError, "ask for a new bundle")
    if (manifest.name, manifest.role) != (own.name, own.role):
        raise RunError(f"{bundle} is for {manifest.role} {manifest.name}, and {home} is {own.role} {own.name}")
    key = read_identity(home / "identity.key").public_key().public_bytes_raw()
    if Member(own.name, key) not in roster.of(own.role)[manifest.index : manifest.index + 1]:
        raise PolicyError(
            f"the roster in {bundle} has another key for {own.name} than this site made; do not "
            "join, and ask who provisioned it",
            "roster",
        )
    if roster.rehearsal:
        raise PolicyError(
            f"{bundle} is of a rehearsal, whose keys were all made in one place; have the "
            "deployment provisioned from public halves",
            "roster",
        )
    found, policy = plain_fingerprint(roster.fingerprint), home / "policy.yaml"
    accepted = read_policy(policy).roster if policy.exists() else None
    before = home / "roster.json"
    if confirmed is None and accepted is None:
        raise ConfigError(
            f"the roster's fingerprint is {roster.fingerprint}; compare it with what the other "
            "sites see, by telephone or in person, then add --fingerprint"
        )
    if found != (accepted if confirmed is None else plain_fingerprint(confirmed)):
        differs = f" ({Roster.read(before).changes(roster)})" if before.exists() else ""
        raise PolicyError(
            f"{bundle} has another roster than was confirmed{differs}; its fingerprint is "
            f"{roster.fingerprint}: compare it with the other sites, then add --fingerprint",
            "roster",
        )
    return install(home, bundle, data)


def install(home: Path, bundle: Path, data: str | None = None) -> SiteBundle:
    """Write what `join` checked, local TLS, start files and, if missing, a safe policy; `RunError` if that fails."""
    roster = Roster.read(bundle / "roster.json")
    about = read_json(bundle / "bundle.json", Manifest, RunError, "ask for a new bundle")
    if data is None and bundle != home and (home / "bundle.json").exists():
        data = read_json(home / "bundle.json", Manifest, RunError, "join anew").data
    if data is not None and about.role == "client":
        about = dataclasses.replace(about, data=data)
    try:
        node, authority = home / SUPERNODE, (bundle / "ca.crt").read_bytes()
        for half in (home, node):
            (half / "roster.json").write_text(roster.to_json() + "\n")
            (half / "bundle.json").write_bytes(TypeAdapter(Manifest).dump_json(about, indent=2))
            (half / "ca.crt").write_bytes(authority)
        runtime = Authority(f"{about.deployment} {about.name}", datetime.fromtimestamp(about.expires, UTC))
        certificate, key = runtime.server(["127.0.0.1", "localhost"])
        (node / "runtime-ca.crt").write_bytes(runtime.certificate)
        (node / "runtime.pem").write_bytes(certificate)
        (node / "runtime.key").unlink(missing_ok=True)
        write_private(node / "runtime.key", key)
        _write_policy(home / "policy.yaml", roster)
        write_site_files(home, node, f"{about.deployment} site {about.name}")
    except OSError as error:
        raise RunError(f"cannot write {home}: {error.strerror}") from error
    found = SiteBundle.open(home)
    found.read_policy()
    return found


def _write_policy(path: Path, roster: Roster) -> None:
    """Write a policy with safe limits, or only the roster's fingerprint into the site's own."""
    seen = plain_fingerprint(roster.fingerprint)
    if path.exists():
        text = re.sub(r"(?m)^roster:.*$", f'roster: "{seen}"', path.read_text("utf-8"))
    else:
        keys = json.dumps([key.hex() for key in roster.keys("submitter")])
        note = _NOTE if roster.rehearsal else ""
        text = TEMPLATE.format(note=note, roster=seen, submitters=keys)
    path.write_text(text, "utf-8")
