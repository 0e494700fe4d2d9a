"""The table of an experiment as Markdown and as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

__all__ = ["experiment_html", "experiment_markdown"]


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _spread(found: Mapping[str, float | None] | None, sign: str = "") -> str:
    if not found:
        return "–"
    text = _number(found["mean"], sign)
    if found["low"] is None:
        return text
    return f"{text} [{_number(found['low'], sign)}, {_number(found['high'], sign)}]"


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("carefl_secure.report"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "spread": _spread}
    return environment


def _names(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in found["rows"] for name in row["figures"]))


def experiment_html(found: Mapping[str, Any]) -> str:
    """Return the results as one self-contained page: nothing is loaded, nothing runs.

    Parameters
    ----------
    found : mapping
        What ``carefl-secure experiment`` keeps in ``results.json``.
    """
    template = _environment(html=True).get_template("experiment.html.j2")
    values = [row["figures"]["mAP"]["mean"] for row in found["rows"] if "mAP" in row["figures"]]
    return template.render(e=found, names=_names(found), most=max(values, default=1.0) or 1.0)


def experiment_markdown(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown tables; see :func:`experiment_html`."""
    template = _environment(html=False).get_template("experiment.md.j2")
    return template.render(e=found, names=_names(found))
