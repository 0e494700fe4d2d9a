"""The aggregation protocols by name, and what makes the parts of a run's parties from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from carefl_secure.errors import ConfigError
from carefl_secure.extensions import find_extension
from carefl_secure.federation.aggregation import base
from carefl_secure.federation.aggregation.committee import Committee
from carefl_secure.federation.aggregation.encrypted import Encrypted
from carefl_secure.federation.aggregation.pairwise import Pairwise
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.exchange import Directory, Exchange

PROTOCOLS: Mapping[str, base.AggregationProtocol] = {
    protocol.name: protocol for protocol in (Pairwise(), Committee(), Encrypted())
}
"""The protocols that come with the package."""

GROUP = "carefl_secure.aggregators"
"""The group of Python entry points that other packages register their protocols in."""


@functools.cache
def find_protocol(name: str) -> base.AggregationProtocol:
    """Return a protocol of this package, or one that another package registers.

    An entry point of the group ``carefl_secure.aggregators`` names a subclass of
    `AggregationProtocol` that can be made without arguments and whose ``name`` is that of the entry
    point. Raises ConfigError when none or several have this name, or it cannot be loaded.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    value, kind = find_extension(GROUP, "federation.aggregation", name, sorted(PROTOCOLS))
    fits = isinstance(kind, type) and issubclass(kind, base.AggregationProtocol)
    if not fits or getattr(kind, "name", None) != name:
        raise ConfigError(
            f"{value} is no aggregation protocol named {name!r}; the entry point must "
            "name a subclass of AggregationProtocol whose name is that of the entry point"
        )
    protocol: base.AggregationProtocol = kind()
    return protocol


def helper_actions(protocol: str = "") -> set[str]:
    """Return the steps of the helpers of this package's protocols, and of one more."""
    rows = [*PROTOCOLS.values(), *([find_protocol(protocol)] if protocol else [])]
    return {action for row in rows for action in row.helper_actions}


def protocol_of(cohort: Cohort) -> base.AggregationProtocol:
    """Return a cohort's protocol; ConfigError where it has another number of helpers."""
    protocol, config = find_protocol(cohort.aggregation), cohort.config
    if (needed := protocol.helpers(config.members)) != config.helpers:
        raise ConfigError(f"aggregation {protocol.name} needs {needed} helpers; the cohort agreed on {config.helpers}")
    return protocol


class ServerSums:
    """Makes the server's part in a run's sums, and keeps prefetched keys; none are in round ``last``."""

    def __init__(
        self, plan: RunPlan, cohort: Cohort, directory: Directory, last: int, folder: Path | None = None
    ) -> None:
        self._setup = base.ServerSetup(plan, cohort, directory, folder)
        self._protocol = protocol_of(cohort)
        self._last = last
        self._prefetch: base.KeyPrefetch | None = None

    def begin(self, exchange: Exchange, number: int, model_hash: bytes) -> base.ServerSum:
        """Return the server's part in one round, with prefetched keys if there are enough for it."""
        made, self._prefetch = self._prefetch, None
        if made is not None and (not made.ready or made.header["round"] != number):
            made = None
        if self._setup.cohort.config.prefetch and self._protocol.prefetches and number < self._last:
            self._prefetch = self._protocol.prefetch(self._setup, exchange, number + 1)
        this = base.ServerRound(exchange, number, model_hash, made, self._prefetch)
        return self._protocol.server(self._setup, this)
