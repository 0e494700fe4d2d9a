"""Rounds of a private federated run on Flower: plan, client, aggregation, server, transport.

Flower reads settings when its first part is imported. They turn off usage reports and version checks here, unless the
user has set the variables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_flower"]

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's round-by-round log lines off the terminal; warnings and errors still pass."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)
