"""The table of an experiment as Markdown and as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from carefl_secure.report.render.page import environment
from carefl_secure.rounding import round_up


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def interval(found: Mapping[str, float | None] | None, name: str = "") -> str:
    """Return ``[low, high]`` of the mapping ``found``; empty where there is none.

    An interval is cut at the bounds of the figure ``name``; empty for a difference of figures.
    """
    if not found or found["low"] is None or found["high"] is None:
        return ""
    if not name:
        return f"[{found['low']:+.3f}, {found['high']:+.3f}]"
    most = 2.0 if name == "brier" else 1.0
    return f"[{max(0.0, found['low']):.3f}, {min(most, found['high']):.3f}]"


def spread(found: Mapping[str, float | None] | None, name: str = "") -> str:
    """Return a mean with its interval; see :func:`interval`."""
    if not found:
        return "–"
    return f"{_number(found['mean'], '' if name else '+')} {interval(found, name)}".rstrip()


def spent(row: Mapping[str, Any]) -> str:
    """Return the epsilon of a row: none where nothing is protected, a dash where none is spent."""
    if row["kind"] == "zero-shot":
        return "–"
    return "none" if row["epsilon"] is None else round_up(row["epsilon"], 2)


def _environment(*, html: bool) -> jinja2.Environment:
    found = environment(html=html)
    found.filters |= {"interval": interval, "number": _number, "spent": spent, "spread": spread}
    return found


def _names(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in found["rows"] for name in row["figures"]))


def experiment_html(found: Mapping[str, Any]) -> str:
    """Return the contents of an experiment's ``results.json`` as one self-contained page."""
    template = _environment(html=True).get_template("experiment.html.j2")
    values = [row["figures"]["mAP"]["mean"] for row in found["rows"] if "mAP" in row["figures"]]
    return template.render(e=found, names=_names(found), most=max(values, default=1.0) or 1.0)


def experiment_markdown(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown tables; see :func:`experiment_html`."""
    template = _environment(html=False).get_template("experiment.md.j2")
    return template.render(e=found, names=_names(found))
