"""Who takes part in a deployment: ``sites.yaml``, and the roster that follows from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from carefl_secure.deployment.provisioning.documents import (
    STRICT,
    PublicKey,
    Real,
    read_json,
    read_yaml,
)
from carefl_secure.errors import ConfigError, RunError

__all__ = ["Roster", "Sites", "read_sites"]

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
"""A site's name, which is also the name of its folder."""


@dataclass(frozen=True, config=STRICT)
class Sites:
    """The content of ``sites.yaml``.

    ``server`` is the SuperLink's host, as the sites reach it, and ``port`` its one port.
    ``clients`` maps names to folders of images, None where the run's own data are shared out
    (simulation). ``helpers`` are the committee members, or the one key holder. Bundles and
    certificates expire after ``days``.
    """

    name: str = "carefl"
    server: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 9092
    clients: Annotated[dict[_Name, str | None], Field(min_length=1, validate_default=True)] = Field(
        default_factory=dict
    )
    helpers: tuple[_Name, ...] = ()
    days: Annotated[Real, Field(gt=0)] = 365.0

    @model_validator(mode="after")
    def _distinct(self) -> Sites:
        """Refuse a name that is used twice."""
        twice = [name for name, n in Counter([*self.clients, *self.helpers]).items() if n > 1]
        if twice:
            raise ValueError(f"the name {twice[0]} is used twice")
        return self


def read_sites(path: Path) -> Sites:
    """Read ``sites.yaml``; the `ConfigError` names every key unknown, missing or out of range."""
    return read_yaml(path, Sites, ConfigError, "correct the list of sites")


@dataclass(frozen=True, config=STRICT)
class Roster:
    """Public keys of everybody, 32 bytes each; the same in every bundle."""

    clients: tuple[PublicKey, ...]
    helpers: tuple[PublicKey, ...]
    submitter: PublicKey

    def to_json(self) -> str:
        """Return the keys as hexadecimal text."""
        return TypeAdapter(Roster).dump_json(self, indent=2).decode()

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read what `to_json` returned; `RunError` when it is missing or damaged."""
        return read_json(path, cls, RunError, "ask for a new bundle")
