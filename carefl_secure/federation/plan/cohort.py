"""Who takes part in a run, and the agreement behind each of its rounds, one for each protocol."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.aggregation_config import (
    PROTOCOLS,
    Aggregation,
    AggregationConfig,
)
from carefl_secure.federation.plan.ciphertext_packing import WORD_BITS, choose_fields
from carefl_secure.secagg import (
    CommitteeParameters,
    EncryptedParameters,
    GraphPlan,
    RoundParameters,
    plan_graph,
)

if TYPE_CHECKING:
    from carefl_secure.federation.plan.run_plan import RunPlan

__all__ = ["SPARSE_ABOVE", "Aggregation", "Cohort", "make_cohort", "masking_graph", "rotation_key"]


SPARSE_ABOVE = 200
"""The most clients that all share masks with one another; more of them share on a sparse graph."""


@dataclass(frozen=True)
class Cohort:
    """Who takes part in which run on which base model.

    The aggregation protocol follows from who is there: with ``members`` it is the committee, with a
    ``key_holder`` encryption, with neither pairwise masking alone. Raises ConfigError when there
    are both, a helper is also a client, or the committee is too small for its dropout tolerance.

    Parameters
    ----------
    roster : tuple of bytes
        Ed25519 public keys, 32 bytes each; a client's index is its place.
    base_hash : bytes
        32 bytes over the frozen base model, the code and the configuration.
    members, key_holder
        Ed25519 public keys of the committee; that of the only party that can decrypt sums.
    committee_dropout_tolerance : int, optional
        Members that may drop out once all have announced; ``2 * committee_dropout_tolerance + 1``
        honest ones are needed then.
    key_prefetch : bool, optional
        Whether the keys of a round are exchanged during the round before; never under encryption.
    protocol : str, optional
        Name of a protocol from another package; it has no helpers.

    Guarantees
    ----------
    All keys here enter the context of every round, in words that differ from protocol to protocol:
    a client that was given another committee, key holder or protocol than its peers takes part in
    no sum with them.
    """

    run: bytes
    roster: tuple[bytes, ...]
    base_hash: bytes
    members: tuple[bytes, ...] = ()
    key_holder: bytes | None = None
    committee_dropout_tolerance: int = 0
    key_prefetch: bool = True
    protocol: str = ""

    def __post_init__(self) -> None:
        """Check that the parties are different."""
        if not 0 <= 2 * self.committee_dropout_tolerance <= max(0, len(self.members) - 1):
            raise ConfigError(
                f"a committee of {len(self.members)} cannot spare "
                f"{self.committee_dropout_tolerance} members; "
                "2 * federation.committee_dropout_tolerance + 1 are needed"
            )
        if self.members and self.key_holder is not None:
            raise ConfigError(
                "a run sums with a committee or with a key holder, not with both; name one of them"
            )
        if self.protocol and (self.helpers or self.protocol in PROTOCOLS):
            raise ConfigError(
                f"a cohort with helpers cannot sum by the protocol {self.protocol!r} of another "
                "package; name one of them"
            )
        if set(self.helpers) & set(self.roster):
            raise ConfigError(
                "a client cannot be its own helper: committee members and the key holder need "
                "keys that are not in the roster of clients"
            )

    @property
    def prefetches(self) -> bool:
        """Whether messages of a round may carry keys for the next one."""
        return self.key_prefetch and self.aggregation != "encrypted"

    @property
    def helpers(self) -> tuple[bytes, ...]:
        """Public keys of the committee or the key holder, in the order of their nodes."""
        return self.members if self.key_holder is None else (self.key_holder,)

    @property
    def aggregation(self) -> Aggregation:
        """Name of the aggregation protocol."""
        if self.protocol:
            return self.protocol
        if self.members:
            return "committee"
        return "pairwise" if self.key_holder is None else "encrypted"

    def round_parameters(
        self, plan: RunPlan, number: int, model_hash: bytes = b""
    ) -> RoundParameters:
        """Return the agreement behind one round of pairwise masking.

        ``model_hash``, of the adapter at the start of the round, is empty before it is bound.
        """
        return RoundParameters(**self._pairwise(plan, number, model_hash))

    def committee_parameters(
        self, plan: RunPlan, number: int, model_hash: bytes = b""
    ) -> CommitteeParameters:
        """Return the agreement behind one round with a committee."""
        return CommitteeParameters(
            **self.common(plan, number, model_hash),
            members=self.members,
            dropout_tolerance=self.committee_dropout_tolerance,
        )

    def encrypted_parameters(
        self, plan: RunPlan, number: int, public_key: bytes, model_hash: bytes = b""
    ) -> EncryptedParameters:
        """Return the agreement behind one encrypted round.

        ``public_key`` is the SHA-256 of the key holder's public key for this round. Raises
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
        graph = masking_graph(plan)
        sparse = (
            {}
            if graph is None
            else {"neighbours": graph.neighbours, "share_threshold": graph.share_threshold}
        )
        return {**self.common(plan, number, model_hash), "threshold": plan.threshold, **sparse}

    def common(self, plan: RunPlan, number: int, model_hash: bytes = b"") -> dict[str, Any]:
        """Return what the agreements of all protocols have in common, by name."""
        if len(self.roster) != plan.privacy.clients:
            raise ConfigError(
                f"the roster names {len(self.roster)} clients, the plan {plan.privacy.clients}"
            )
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


def masking_graph(plan: RunPlan) -> GraphPlan | None:
    """Return the graph of pairwise masks of a plan; None for the complete graph.

    Up to `SPARSE_ABOVE` clients every two of them share a mask. Above, each shares masks with its
    neighbours on a ring only, as many as the plan's colluders and a tenth of the clients dropping
    out need (`plan_graph`); the failure probabilities are those of `GraphPlan`. All of it follows
    from the plan, and degree and threshold are hashed into the context of every round.

    Raises ConfigError when no graph sparser than the complete one withstands so many colluders.
    """
    privacy = plan.privacy
    if privacy.clients <= SPARSE_ABOVE:
        return None
    return plan_graph(
        privacy.clients,
        colluders=privacy.max_colluders,
        dropouts=privacy.clients // 10,
        members=max(plan.threshold, privacy.min_survivors),
    )


def rotation_key(plan_hash: bytes, base_hash: bytes, model_hash: bytes, number: int) -> bytes:
    """Return the public key of a round's random rotation, 32 bytes; it need not be secret.

    It does not depend on who takes part or how the sum is made, so the same run has the same
    rotations on every engine and under every protocol.
    """
    parts = plan_hash + base_hash + model_hash + number.to_bytes(8, "big")
    return hashlib.sha256(b"carefl rotation" + parts).digest()


def make_cohort(
    run: str,
    roster: tuple[bytes, ...],
    helpers: tuple[bytes, ...],
    base_hash: bytes,
    aggregation: AggregationConfig,
) -> Cohort:
    """Return the cohort of a run whose helpers are committee members or the key holder.

    ``roster`` and ``helpers`` are Ed25519 public keys, ``aggregation.helpers`` of the latter.
    """
    committee, encrypted = (aggregation.protocol == one for one in ("committee", "encrypted"))
    return Cohort(
        run.encode(),
        roster,
        base_hash,
        members=helpers if committee else (),
        key_holder=helpers[0] if encrypted and helpers else None,
        committee_dropout_tolerance=aggregation.dropout_tolerance if committee else 0,
        key_prefetch=aggregation.prefetch,
        protocol="" if aggregation.protocol in PROTOCOLS else aggregation.protocol,
    )
