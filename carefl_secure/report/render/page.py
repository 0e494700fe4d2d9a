"""The page and the card: templates filled with a report."""

from __future__ import annotations

import math

import jinja2

from carefl_secure.privacy.accounting.attack_bounds import AttackerBounds
from carefl_secure.report.render.plots import attacker_plot, rounds_plot
from carefl_secure.report.schema import Report
from carefl_secure.rounding import delta_words, percent_up, round_up

_CALM = ("#0b6b69", "#eef6f5")
_ALARM = ("#a4161a", "#fbf0f0")


def environment(*, html: bool) -> jinja2.Environment:
    """Return what renders the templates of this package; unknown names are errors."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("carefl_secure.report"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"delta": delta_words, "percent": percent_up, "up": round_up}
    return made


def html_page(report: Report, bounds: AttackerBounds | None) -> str:
    """Return the report as one self-contained page: nothing is loaded, nothing runs.

    ``bounds`` is for the drawing; None where no ceiling holds.
    """
    accent, tint = _CALM if report.verdict == "accounted" else _ALARM
    price = report.promise.epsilon
    # three thirds: up to 1, up to 10, above; logarithmic inside, and never at the very edge
    place = 0.0 if price is None else (math.log10(max(price, 1e-9)) + 1.0) / 3.0
    outcomes = [check.outcome for check in report.checks]
    return (
        environment(html=True)
        .get_template("report.html.j2")
        .render(
            r=report,
            accent=accent,
            tint=tint,
            pin=f"{100.0 * min(0.98, max(0.02, place)):.1f}",
            held=outcomes.count("held"),
            unchecked=outcomes.count("not checked"),
            rounds_wide=rounds_plot(report, wide=True, accent=accent),
            rounds_narrow=rounds_plot(report, wide=False, accent=accent),
            attacker_wide=_ceiling(bounds, wide=True, accent=accent),
            attacker_narrow=_ceiling(bounds, wide=False, accent=accent),
        )
    )


def _ceiling(bounds: AttackerBounds | None, *, wide: bool, accent: str) -> str:
    return "" if bounds is None else attacker_plot(bounds.curve, wide=wide, accent=accent)


def markdown_section(report: Report) -> str:
    """Return the privacy section of a model card, from a second-level heading on."""
    text = environment(html=False).get_template("card.md.j2").render(r=_Escaped(report))
    return text.strip() + "\n"


class _Escaped:
    """A report whose texts cannot break out of a table or a list of Markdown."""

    def __init__(self, report: Report) -> None:
        plain = report.model_dump()
        self.__dict__.update({name: _quiet(value) for name, value in plain.items()})


def _quiet(value: object) -> object:
    if isinstance(value, str):
        return " ".join(value.replace("|", "\\|").replace("<", "&lt;").split())
    if isinstance(value, dict):
        return {name: _quiet(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_quiet(inner) for inner in value]
    return value
