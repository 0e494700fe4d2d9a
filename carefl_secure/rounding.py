"""Numbers for people and for JSON; bounds are rounded up."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from numbers import Integral, Real
from typing import Any

_CLEAR, _LOST = 1.0, 0.1  # signal over noise, by norms


def round_up(value: float, digits: int = 3) -> str:
    """Show a bound with at most ``digits`` decimals, never less than it is.

    The one way in which an epsilon is shown. The decimals are those of the shortest text that
    stands for the number, so that 0.3 is not taken for the double just above it.
    """
    if not math.isfinite(value):
        return "infinite"
    shown = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)
    return f"{shown:f}".rstrip("0").rstrip(".") if digits else f"{shown:f}"


def finite(value: float | None) -> float | None:
    """Return a number that can be shown, as a plain float, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Return what strict JSON can hold, dataclasses as objects; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return finite(float(value)) if isinstance(value, Real) else str(value)


def percent_up(share: float) -> str:
    """Show a share in [0, 1] as a percentage with one decimal, never less than it is."""
    return f"{round_up(100.0 * share, 1)} %"


def delta_words(delta: float) -> str:
    """Show a delta as a power of ten and as odds, never rarer than delta, such as ``1e-5, or 1 in 100 000``."""
    odds = f"{math.floor(1.0 / delta + 1e-6):,}".replace(",", " ")
    return f"{delta:g}".replace("e-0", "e-") + f", or 1 in {odds}"


def signal_to_noise(opened: float, noise: float, *, banded: bool = False) -> str:
    """Estimate how large the mean update is next to its noise, and judge it in a word or two.

    The opened mean has the norm ``opened``, and in expectation its square is that of the update plus that of the
    noise, whose norm is ``noise``. Training adds up over rounds, so a weak signal still teaches, a lost one does not.
    ``banded``: later rounds cancel part of this noise, so one round is not judged.
    """
    if noise <= 0.0:
        return "no noise"
    ratio = math.sqrt(max(0.0, opened**2 - noise**2)) / noise
    word = "clear" if ratio >= _CLEAR else "weak" if ratio >= _LOST else "lost in the noise"
    word = "this round alone" if banded else word
    return f"{ratio:.2f} ({word})"


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], text: str = "") -> str:
    """Return a table for a notebook, with a sentence below it; floats get three decimals."""

    def row(cells: Iterable[object], tag: str) -> str:
        shown = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{html.escape(one)}</{tag}>" for one in shown) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    below = f"<p>{html.escape(text)}</p>" if text else ""
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>{below}"
