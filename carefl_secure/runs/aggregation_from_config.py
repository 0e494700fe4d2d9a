"""From a configuration to how its rounds sum."""

from __future__ import annotations

from carefl_secure.config import Config
from carefl_secure.federation.plan.aggregation_config import AggregationConfig

__all__ = ["aggregation_of"]


def aggregation_of(config: Config) -> AggregationConfig:
    """Return the aggregation protocol of a configuration; the same at every party."""
    federation = config.federation
    return AggregationConfig(
        protocol=federation.aggregation,
        members=federation.committee_members,
        dropout_tolerance=federation.committee_dropout_tolerance,
        prefetch=federation.key_prefetch,
    )
