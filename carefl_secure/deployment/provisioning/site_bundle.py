"""Bundles: one folder per party, with what it needs to take part and nothing of anybody else.

What is provisioned for a site is public: ``bundle.json`` (the manifest), ``roster.json`` (public
keys of all) and ``ca.crt``. The site's own folder, made by ``carefl-secure site init`` and ``site
join``, holds these, ``policy.yaml``, ``identity.key``, and later its ``ledgers/``. What the
SuperNode needs is in the folder ``supernode`` within it, which may be moved elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.documents import STRICT, read_json
from carefl_secure.deployment.provisioning.party_keys import SUPERNODE, plain_fingerprint
from carefl_secure.deployment.provisioning.policy import Policy, read_policy
from carefl_secure.deployment.provisioning.sites import Roster
from carefl_secure.errors import PolicyError, RunError

Role = Literal["client", "helper"]
"""Whether a site has records, or helps to sum: a committee member or the key holder."""

Half = Literal["agent", "supernode"]
"""Half of a site: the agent holds everything secret, the SuperNode runs delivered code."""

HALVES: Mapping[Half, tuple[str, ...]] = {
    "agent": ("identity.key", "policy.yaml"),
    "supernode": ("ca.crt", "node.key", "runtime-ca.crt", "runtime.pem", "runtime.key"),
}
"""The files that each half needs in its folder besides ``bundle.json`` and ``roster.json``."""

_ADVICE = "ask for a new bundle"


@checked(frozen=True, config=STRICT)
class Manifest:
    """The content of a site's ``bundle.json``."""

    name: str
    role: Role
    index: Annotated[int, Field(ge=0)]
    server: str  # the SuperLink's host:port
    expires: float  # seconds since 1970
    data: str | None  # the folder of the site's images; None where the run's own data are shared out
    deployment: str


@checked(frozen=True, config=STRICT)
class ServerManifest:
    """The content of the server's ``bundle.json``."""

    name: str
    port: Annotated[int, Field(ge=1, le=65535)]
    expires: float


def read_server_manifest(bundle: Path) -> ServerManifest:
    """Read a server's ``bundle.json``; `RunError` when it is missing, damaged or expired."""
    found = read_json(bundle / "bundle.json", ServerManifest, RunError, "provision the server anew")
    _check_expiry(bundle, found.expires, None)
    return found


@dataclass(frozen=True, kw_only=True)
class SiteBundle(Manifest):
    """One site's bundle, number ``index`` of the roster."""

    path: Path
    roster: Roster

    @classmethod
    def open(cls, path: Path, now: float | None = None, half: Half | None = None) -> SiteBundle:
        """Read a bundle, or one half's; ``now``: seconds since 1970; `RunError` if incomplete, damaged or expired."""
        manifest = read_json(path / "bundle.json", Manifest, RunError, _ADVICE)
        roster = Roster.read(path / "roster.json")
        if manifest.index >= len(roster.of(manifest.role)):
            raise RunError(f"{path}: index {manifest.index} is not in the roster; {_ADVICE}")
        for one, names in HALVES.items():
            home = node_folder(path) if one == "supernode" else path
            lacks = [name for name in names if not (home / name).is_file()]
            if half in (None, one) and lacks:
                raise RunError(f"{home} lacks {lacks[0]}; make it with carefl-secure site init and site join")
        _check_expiry(path, manifest.expires, now)
        return cls(**vars(manifest), path=path.resolve(), roster=roster)

    def read_policy(self) -> Policy:
        """Read the site's ``policy.yaml``, and hold the roster against it and the site's own key.

        Raises `ConfigError` for an invalid policy, `RunError` for a missing key, and `PolicyError`
        (clause ``roster``) when the roster is another than the one that a person of this site
        confirmed, or has another key for this site than the site's own.
        """
        policy = read_policy(self.path / "policy.yaml")
        if policy.roster != plain_fingerprint(self.roster.fingerprint):
            raise PolicyError(
                f"{self.path / 'roster.json'} is another roster than this site has confirmed; its "
                f"fingerprint is {self.roster.fingerprint}: compare it with the other sites, then "
                "use carefl-secure site join with --fingerprint",
                "roster",
            )
        own = read_identity(self.path / "identity.key").public_key().public_bytes_raw()
        if self.roster.keys(self.role)[self.index] != own:
            raise PolicyError(
                f"the roster has another key for {self.name} than {self.path / 'identity.key'}; "
                "have the deployment provisioned with this site's public half",
                "roster",
            )
        return policy


def node_folder(path: Path) -> Path:
    """Return the SuperNode's folder of a site's folder; itself where it is that already."""
    return path / SUPERNODE if (path / SUPERNODE).is_dir() else path


def _check_expiry(path: Path, expires: float, now: float | None) -> None:
    if (time.time() if now is None else now) >= expires:
        day = datetime.fromtimestamp(expires, UTC)
        raise RunError(f"the bundle {path} expired on {day:%Y-%m-%d %H:%M} UTC; {_ADVICE}")
