"""Who takes part in a deployment: ``sites.yaml``, and the roster that follows from it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from carefl_secure.deployment.provisioning.documents import STRICT, PublicKey, Real, parse_json, read_json, read_yaml
from carefl_secure.deployment.provisioning.party_keys import Name, PartyRole, PublicHalf, fingerprint
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.run_folder import write_atomically

REHEARSAL = (
    "a rehearsal: all private keys are made in one place, so nobody is protected from whoever "
    "started it; between sites each makes its own, with carefl-secure site init"
)
_LABEL = b"carefl roster\x00"
_ADVICE = "correct the list of sites"


@dataclass(frozen=True, config=STRICT)
class Sites:
    """The content of ``sites.yaml``.

    ``server`` is the SuperLink's host, as the sites reach it, and ``port`` its one port. ``clients`` maps names to
    folders of images, None where the run's own data are shared out (simulation). ``helpers`` are the committee
    members, or the one key holder; ``submitters`` may submit runs. Bundles and certificates expire after ``days``.
    """

    name: str = "carefl"
    server: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 9092
    clients: Annotated[dict[Name, str | None], Field(min_length=1, validate_default=True)] = Field(
        default_factory=dict
    )
    helpers: tuple[Name, ...] = ()
    submitters: Annotated[tuple[Name, ...], Field(min_length=1)] = ("submitter",)
    days: Annotated[Real, Field(gt=0)] = 365.0

    @model_validator(mode="after")
    def _distinct(self) -> Sites:
        """Refuse a name that is used twice."""
        counts = Counter([*self.clients, *self.helpers, *self.submitters])
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"the name {twice[0]} is used twice")
        return self


def read_sites(path: Path) -> Sites:
    """Read ``sites.yaml``; the `ConfigError` names every key unknown, missing or out of range."""
    return read_yaml(path, Sites, ConfigError, _ADVICE)


def change_sites(path: Path, keys: Path, half: Path | None, data: str | None, leaves: str | None) -> Sites:
    """Add the party of a public half, or remove one; return the sites, written to ``path`` without its comments.

    The half goes into the folder ``keys``, also where its party is listed already; ``data`` is the folder of a
    client's records. Raises `ConfigError` for a name that is unknown, or that a party of another role has, and
    `RunError` for a damaged half; then nothing is written.
    """
    sites = read_sites(path)
    helpers, submitters = (dict[str, str | None].fromkeys(one) for one in (sites.helpers, sites.submitters))
    parties = {"client": dict(sites.clients), "helper": helpers, "submitter": submitters}
    if leaves is not None and not any(leaves in named for named in parties.values()):
        raise ConfigError(f"{path} lists no {leaves}; name a party that it lists")
    new = None if half is None else PublicHalf.read(half)
    if new is not None:
        parties[new.role][new.name] = data or parties[new.role].get(new.name)
    listed = {one.name: getattr(sites, one.name) for one in dataclasses.fields(sites)}
    clients, helpers, submitters = ({n: at for n, at in named.items() if n != leaves} for named in parties.values())
    listed |= {"clients": clients, "helpers": [*helpers], "submitters": [*submitters]}
    changed = parse_json(json.dumps(listed), Sites, str(path), ConfigError, _ADVICE)
    write_atomically(path, yaml.safe_dump(listed, sort_keys=False).encode())
    if half is not None and new is not None:
        (keys / f"{new.name}.pub.json").write_bytes(half.read_bytes())
    return changed


@dataclass(frozen=True, config=STRICT)
class Member:
    """A party as the others know it: its name and its Ed25519 public key."""

    name: Name
    key: PublicKey


@dataclass(frozen=True, config=STRICT)
class Roster:
    """Names and public keys of all parties, in order; the same in every bundle.

    In a ``rehearsal`` one process made all the keys, so no party is protected from who started it.
    """

    deployment: str
    clients: tuple[Member, ...]
    helpers: tuple[Member, ...]
    submitters: tuple[Member, ...]
    rehearsal: bool = False

    @model_validator(mode="after")
    def _distinct(self) -> Roster:
        """Refuse a name or a key that stands for two parties."""
        members = [*self.clients, *self.helpers, *self.submitters]
        for values in ([one.name for one in members], [one.key.hex() for one in members]):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"{twice[0]} is used by two parties")
        return self

    def of(self, role: PartyRole) -> tuple[Member, ...]:
        """Return the parties of one role."""
        return {"client": self.clients, "helper": self.helpers, "submitter": self.submitters}[role]

    def keys(self, role: PartyRole) -> tuple[bytes, ...]:
        """Return the public keys of one role, in order."""
        return tuple(one.key for one in self.of(role))

    @property
    def fingerprint(self) -> str:
        """The fingerprint over everything in the roster; a person of every site compares it."""
        return fingerprint(_LABEL + TypeAdapter(Roster).dump_json(self))

    def changes(self, other: Roster) -> str:
        """Say by name what differs in another roster, in one line."""
        said = []
        roles: tuple[PartyRole, ...] = ("client", "helper", "submitter")
        for role in roles:
            old, new = ({one.name: one.key for one in roster.of(role)} for roster in (self, other))
            said += [f"{role} {name} is new" for name in new if name not in old]
            said += [f"{role} {name} is gone" for name in old if name not in new]
            said += [f"{role} {name} has another key" for name in new if name in old and new[name] != old[name]]
            if not said and list(old) != list(new):
                said.append(f"the order of {role}s is another")
        if self.deployment != other.deployment:
            said.append(f"the deployment is {other.deployment}")
        if other.rehearsal > self.rehearsal:
            said.append("it is a rehearsal's, whose keys were all made in one place")
        return "; ".join(said) or "nothing differs"

    def to_json(self) -> str:
        """Return the keys as hexadecimal text."""
        return TypeAdapter(Roster).dump_json(self, indent=2).decode()

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read what `to_json` returned; `RunError` when it is missing or damaged."""
        return read_json(path, cls, RunError, "ask for a new bundle")
