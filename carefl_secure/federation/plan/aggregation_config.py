"""How the rounds of a run sum: one frozen object, from the configuration to every party."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.canonical_json import dataclass_from_json
from carefl_secure.privacy.statement import aggregation_text

Aggregation = str
"""The name of an aggregation protocol."""

PROTOCOLS = ("pairwise", "committee", "encrypted")
"""The protocols of this package; an installed one may bring others."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """The aggregation protocol of a run and its parameters.

    Parameters
    ----------
    protocol : str
        One of :data:`PROTOCOLS`, or that of an installed package. The same noise gives the same adapter under all.
    dropout_tolerance : int
        Committee members that may drop out once all have announced their keys; ``2 * dropout_tolerance + 1`` honest
        members are needed then, in place of one.
    prefetch : bool
        Whether keys are exchanged one round ahead, which changes no result; not used where uploads are encrypted.
    own_helpers : int
        Helpers that a protocol of another package needs, as its ``helpers`` says; 0 for this package's.
    """

    protocol: Aggregation = "pairwise"
    members: int = 3
    dropout_tolerance: int = 0
    prefetch: bool = True
    own_helpers: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.protocol):
            raise ConfigError(
                f"{self.protocol!r} cannot name an aggregation protocol; choose one of "
                f"{', '.join(PROTOCOLS)}, or one that an installed package brings"
            )
        if self.members < 1:
            raise ConfigError(f"a committee of {self.members} members is none; choose 1 or more")
        if not 0 <= 2 * self.dropout_tolerance < self.members:
            raise ConfigError(
                f"a committee of {self.members} cannot lose {self.dropout_tolerance} members; "
                "2 * federation.committee_dropout_tolerance + 1 are needed"
            )
        if self.own_helpers < 0 or (self.own_helpers and self.protocol in PROTOCOLS):
            raise ConfigError(f"aggregation {self.protocol} cannot have {self.own_helpers} helpers of its own")

    @property
    def helpers(self) -> int:
        """Number of parties besides the clients and the server."""
        return {"committee": self.members, "encrypted": 1}.get(self.protocol, self.own_helpers)

    @property
    def honest_members(self) -> int:
        """Committee members that must not side with the server: ``2 * dropout_tolerance + 1``.

        With m members and a tolerance s, a server needs the openings of m - s members for a list. Two different lists,
        or a list and the seeds of its absent members, share at least m - 2 s of them (``docs/protocol.md``, 4).
        """
        return 2 * self.dropout_tolerance + 1

    @property
    def label(self) -> str:
        """Protocol and whatever else changes whom the clients trust, for checkpoints."""
        if self.protocol == "committee" and self.dropout_tolerance:
            return f"{self.protocol} (dropout tolerance {self.dropout_tolerance})"
        return self.protocol

    @property
    def assumptions(self) -> str:
        """Whom the privacy statement needs besides the clients, in one sentence; may be empty."""
        return aggregation_text(self.protocol, self.honest_members)

    @classmethod
    def from_settings(cls, federation: Mapping[str, Any], own_helpers: int = 0) -> AggregationConfig:
        """Return what a configuration's section ``federation`` says; defaults for what it lacks."""
        names = {
            "aggregation": "protocol",
            "committee_members": "members",
            "committee_dropout_tolerance": "dropout_tolerance",
            "key_prefetch": "prefetch",
        }
        found = {field: federation[key] for key, field in names.items() if key in federation}
        return cls(**found, own_helpers=own_helpers)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``own_helpers`` only where there are some."""
        return {key: value for key, value in vars(self).items() if key != "own_helpers" or value}

    @classmethod
    def from_json(cls, value: Any) -> AggregationConfig:
        """Return the configuration that `to_json` gave; ConfigError when a field is not valid."""
        return dataclass_from_json(cls, value, "own_helpers")
