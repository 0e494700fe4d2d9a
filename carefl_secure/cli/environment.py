"""Environment variables that libraries read when they are imported."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

__all__ = ["SETTINGS", "prepare_environment"]

SETTINGS: Mapping[str, str] = {
    # Flower would report usage and ask for newer releases.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # An OpenMP pool that spins while it waits is many times slower next to other work.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


def prepare_environment() -> None:
    """Set what the user has not set; call before torch or flwr is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # It remarks at import that it could fetch a kernel from a hub and run it; we never want that.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
