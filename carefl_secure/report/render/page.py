"""The page, and the block of the adapter's model card: templates filled with a report."""

from __future__ import annotations

import math
import re

import jinja2
import yaml

from carefl_secure.errors import RunError
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
    text = environment(html=False).get_template("card.md.j2").render(r=_quiet(report.model_dump()))
    return text.strip() + "\n"


def _quiet(value: object) -> object:
    """Keep the texts of a report from breaking out of a table or a list of Markdown."""
    if isinstance(value, str):
        return " ".join(value.replace("|", "\\|").replace("<", "&lt;").split())
    if isinstance(value, dict):
        return {name: _quiet(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_quiet(inner) for inner in value]
    return value


_HEAD_BEGIN, _HEAD_END = "# carefl-privacy: begin", "# carefl-privacy: end"
_BEGIN, _END = "<!-- carefl-privacy: begin -->", "<!-- carefl-privacy: end -->"
_NEW = "---\nlibrary_name: peft\n---\n\n# Adapter\n\n"


def put_into_readme(readme: str, report: Report) -> str:
    """Return the model card ``readme`` (empty for none) with the privacy of a report in it.

    The block between our markers is replaced; without markers, it is added at the end of the front
    matter and at the end of the text.

    Raises
    ------
    RunError
        A marker is unpaired, or the front matter is not YAML afterwards.
    """
    front, body = _split(readme or _NEW)
    front = _replaced(front, _HEAD_BEGIN, _HEAD_END, _front_block(report))
    try:
        found = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise RunError(f"the front matter of adapter/README.md is not valid YAML; correct it: {error}") from error
    if not isinstance(found, dict):
        raise RunError("the front matter of adapter/README.md is not a mapping; correct it")
    body = _replaced(body, _BEGIN, _END, "\n" + markdown_section(report) + "\n")
    return f"---\n{front}---\n{body}"


def _split(text: str) -> tuple[str, str]:
    """Return front matter and body; a card without front matter has an empty one."""
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return (match.group(1), text[match.end() :]) if match else ("", "\n" + text)


def _replaced(text: str, begin: str, end: str, block: str) -> str:
    """Put a block between its marks, or with them at the end."""
    if text.count(begin) != text.count(end) or text.count(begin) > 1:
        raise RunError(f"adapter/README.md holds the marker {begin!r} or its end unpaired or twice; remove both")
    if begin not in text:
        gap = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{gap}{begin}\n{block}{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{block}{end}{after}"


def _front_block(report: Report) -> str:
    price = report.promise.epsilon
    facts: dict[str, object] = {
        "verdict": report.verdict,
        "epsilon": None if price is None else float(round_up(price)),
        "delta": report.promise.delta,
        "unit": report.unit.kind,
        "trust": report.trust.setting,
        "adjacency": report.unit.adjacency,
        "mechanism": report.mechanism.name,
        "strength": report.promise.strength,
        "plan_sha256": report.plan_sha256,
    }
    return yaml.safe_dump({"differential_privacy": facts}, sort_keys=False, width=1000)
