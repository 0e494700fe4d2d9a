"""A helper's steps, taken one by one."""

from __future__ import annotations

from typing import Any

from carefl_secure.federation.aggregation.base import Helper
from carefl_secure.federation.transport.messages import pack

__all__ = ["take"]


def take(helper: Helper, action: str, **fields: Any) -> bytes:
    """Have a helper take one step, and return the one value of its reply."""
    reply = helper.answer(f"query.{action}", pack(**fields))
    ((_, octets),) = reply["fields"].items()
    assert isinstance(octets, bytes)
    return octets
