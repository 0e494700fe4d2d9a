"""Names of the attacks, without the weight of their code."""

from __future__ import annotations

ATTACK_NAMES = (
    "conformance",
    "server-view",
    "helper-view",
    "canaries",
    "client-canaries",
    "reconstruction",
    "images",
    "membership",
    "exposure",
    "attributes",
)
"""In the order in which an audit runs them; a test holds this against the attacks themselves."""
