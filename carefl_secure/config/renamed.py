"""Settings that have a new name, so that an old file gets an error that says which."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REMOVED", "RENAMED", "RENAMED_VALUES"]

RENAMED: Mapping[str, str] = {
    "federation.committee_spare": "federation.committee_dropout_tolerance",
    "federation.keys_ahead": "federation.key_prefetch",
    "federation.lanes": "performance.parallel_batches",
    "federation.parallel_batches": "performance.parallel_batches",
    "federation.micro_batch": "performance.micro_batch",
    "federation.workers": "performance.workers",
    "federation.timeout_s": "performance.timeout_s",
    "federation.dropout": "simulation.dropout",
    "federation.stragglers": "simulation.stragglers",
    "evaluation.batch": "performance.evaluation_batch",
    "evaluation.floors": "evaluation.baselines",
}
"""Old key to new key."""

RENAMED_VALUES: Mapping[tuple[str, str], str] = {
    ("federation.aggregation", "peer"): "pairwise",
    ("federation.aggregation", "encrypt"): "encrypted",
}
"""Setting and old value to new value."""

REMOVED: Mapping[str, str] = {
    "federation.encryption": "federation.aggregation=encrypted always uses BFV, so leave it out"
}
"""Old key to what to do instead."""
