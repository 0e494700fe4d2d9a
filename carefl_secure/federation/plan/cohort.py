"""Who takes part in a run and how its rounds sum: frozen objects, from the configuration to every party."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.statement import aggregation_text
from carefl_secure.secagg import CommitteeParameters, EncryptedParameters, RoundParameters
from carefl_secure.secagg.encrypted.packing import WORD_BITS, choose_fields
from carefl_secure.strict_json import dataclass_from_json

if TYPE_CHECKING:
    from carefl_secure.federation.plan.run_plan import RunPlan

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


@dataclass(frozen=True)
class Cohort:
    """Who takes part in which run on which base model, and how the run sums.

    Parameters
    ----------
    roster : tuple of bytes
        Ed25519 public keys, 32 bytes each; a client's index is its place.
    base_hash : bytes
        32 bytes over the frozen base model, the code and the configuration.
    helpers : tuple of bytes
        Ed25519 public keys, not of clients, of the committee or of the only party that can decrypt sums, in order.

    Guarantees
    ----------
    All keys here enter the context of every round, in words that differ from protocol to protocol: a client that was
    given another committee, key holder or protocol than its peers takes part in no sum with them.
    """

    run: bytes
    roster: tuple[bytes, ...]
    base_hash: bytes
    helpers: tuple[bytes, ...] = ()
    config: AggregationConfig = field(default_factory=AggregationConfig)

    def __post_init__(self) -> None:
        if len(self.helpers) != self.config.helpers:
            raise ConfigError(
                f"aggregation {self.config.protocol} needs {self.config.helpers} helpers, not "
                f"{len(self.helpers)}; name the key of each"
            )
        if set(self.helpers) & set(self.roster):
            raise ConfigError(
                "a client cannot be its own helper: committee members and the key holder need "
                "keys that are not in the roster of clients"
            )

    @property
    def aggregation(self) -> Aggregation:
        """Name of the aggregation protocol."""
        return self.config.protocol

    @property
    def prefetches(self) -> bool:
        """Whether messages of a round may carry keys for the next one."""
        return self.config.prefetch and self.aggregation != "encrypted"

    @property
    def members(self) -> tuple[bytes, ...]:
        """Public keys of the committee."""
        return self.helpers if self.aggregation == "committee" else ()

    @property
    def key_holder(self) -> bytes | None:
        """Public key of the only party that can decrypt sums."""
        return self.helpers[0] if self.aggregation == "encrypted" else None

    def round_parameters(self, plan: RunPlan, number: int, model_hash: bytes = b"") -> RoundParameters:
        """Return the agreement behind one round of pairwise masking; ``model_hash`` is empty before it is bound."""
        return RoundParameters(**self._pairwise(plan, number, model_hash))

    def committee_parameters(self, plan: RunPlan, number: int, model_hash: bytes = b"") -> CommitteeParameters:
        """Return the agreement behind one round with a committee."""
        common, tolerance = self.common(plan, number, model_hash), self.config.dropout_tolerance
        return CommitteeParameters(**common, members=self.members, dropout_tolerance=tolerance)

    def encrypted_parameters(
        self, plan: RunPlan, number: int, public_key: bytes, model_hash: bytes = b""
    ) -> EncryptedParameters:
        """Return the agreement behind a round under the key whose SHA-256 is ``public_key``.

        ConfigError when the plan's sums do not fit a ciphertext, or there is no key holder.
        """
        if self.key_holder is None:
            raise ConfigError("an encrypted sum needs a key holder; name its public key")
        room = choose_fields(plan.encoding)
        return EncryptedParameters(
            **{**self._pairwise(plan, number, model_hash), "bits": WORD_BITS},
            key_holder=self.key_holder,
            public_key=public_key,
            value_bound=room.value_bound,
            field_bits=room.field_bits,
        )

    def _pairwise(self, plan: RunPlan, number: int, model_hash: bytes) -> dict[str, Any]:
        graph = plan.graph
        sparse = {} if graph is None else {"neighbours": graph.neighbours, "share_threshold": graph.share_threshold}
        return {**self.common(plan, number, model_hash), "threshold": plan.threshold, **sparse}

    def rotation(self, plan: RunPlan, number: int, model_hash: bytes) -> bytes:
        """Return the key of a round's rotation; under banded noise, which rounds take back, it is one for the run."""
        fixed = plan.privacy.correlation is not None
        return rotation_key(plan.hash(), self.base_hash, bytes(32) if fixed else model_hash, 0 if fixed else number)

    def common(self, plan: RunPlan, number: int, model_hash: bytes = b"") -> dict[str, Any]:
        """Return what the agreements of all protocols have in common, by name."""
        if len(self.roster) != plan.privacy.clients:
            raise ConfigError(f"the roster names {len(self.roster)} clients, the plan {plan.privacy.clients}")
        return {
            "task": self.run,
            "round": number,
            "dimension": plan.encoding.padded,
            "bits": plan.encoding.bits,
            "min_survivors": plan.privacy.min_survivors,
            "base_hash": self.base_hash,
            "plan_hash": plan.hash(),
            "roster": self.roster,
            "model_hash": model_hash,
        }


def rotation_key(plan_hash: bytes, base_hash: bytes, model_hash: bytes, number: int) -> bytes:
    """Return the public key of a round's random rotation, 32 bytes, whoever takes part and however it sums."""
    parts = plan_hash + base_hash + model_hash + number.to_bytes(8, "big")
    return hashlib.sha256(b"carefl rotation" + parts).digest()
