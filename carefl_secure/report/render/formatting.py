"""Format numbers; bounds are rounded up."""

from __future__ import annotations

import math

__all__ = ["delta_words", "percent_up", "up"]


def up(value: float, digits: int = 3) -> str:
    """Show a bound with ``digits`` decimals, never less than it is, without trailing zeros."""
    if not math.isfinite(value):
        return "infinite"
    scale = 10.0**digits
    # a value that is already round must not gain a step from how it is stored
    shown = math.ceil(value * scale - 1e-9) / scale
    return f"{shown:.{digits}f}".rstrip("0").rstrip(".")


def percent_up(share: float) -> str:
    """Show a share in [0, 1] as a percentage with one decimal, never less than it is."""
    return f"{up(100.0 * share, 1)} %"


def delta_words(delta: float) -> str:
    """Show a delta above 0 as a power of ten and as odds, which are never rarer than delta.

    Such as ``1e-5, or 1 in 100 000``.
    """
    odds = f"{math.floor(1.0 / delta + 1e-6):,}".replace(",", " ")
    return f"{delta:g}".replace("e-0", "e-") + f", or 1 in {odds}"
