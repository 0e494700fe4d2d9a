"""Settings that Flower reads while it is imported; import this module before any part of flwr.

Flower reports usage to its maker and asks for newer versions unless two environment variables say
otherwise. A value that the person has set is left as it is.
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
    """Keep Flower's round-by-round log lines off the terminal; warnings and errors still pass.

    Progress goes through the reporter instead, so that only the command line decides what is shown.
    """
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)
