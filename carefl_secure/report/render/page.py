"""Templates filled with a report, an experiment or threat models: pages, tables, model card, registry entry."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from carefl_secure.errors import RunError
from carefl_secure.privacy.accounting.attack_bounds import AttackerBounds
from carefl_secure.report.render.charts import Line, line_chart
from carefl_secure.report.render.templates import environment
from carefl_secure.report.schema import Report, RoundLine
from carefl_secure.rounding import round_up

_CALM = ("#0b6b69", "#eef6f5")
_ALARM = ("#a4161a", "#fbf0f0")


def html_page(report: Report, bounds: AttackerBounds | None, scores: Mapping[str, Any] | None = None) -> str:
    """Return the report as one self-contained page: nothing is loaded, nothing runs.

    ``bounds`` is for the drawing, None where no ceiling holds; ``scores`` the JSON of the run's evaluation, if any.
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
            rounds=round_charts(report.rounds, report.accounting.agreed_epsilon),
            ceiling=None if bounds is None else _ceiling(bounds),
            scores=scores,
        )
    )


_NAMES = {"mAP": "mAP", "macro_f1": "F1 (macro)"}
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


def round_charts(rounds: Sequence[RoundLine], agreed: float | None) -> list[str]:
    """Draw epsilon with its agreed limit, and the scores of every round; nothing where no round is finished."""
    if not rounds:
        return []
    last = rounds[-1].round
    x = (min(0.5, 1.0 - 0.03 * last), last + max(0.5, 0.03 * last))
    known = [(line.round, line.epsilon) for line in rounds if line.epsilon is not None]
    highest = max((price for _, price in known), default=1.0)
    lines = [Line(known, "accent", label=round_up(known[-1][1], 2))] if known else []
    if agreed is not None and agreed <= 3 * highest:
        highest = max(highest, agreed)
        lines.append(Line([(x[0], agreed), (x[1], agreed)], "faint", "4 3", f"agreed limit {agreed:g}"))
    names = list(dict.fromkeys(name for line in rounds for name in line.metrics))[:4]
    scores = [
        Line(
            [(e.round, e.metrics[name]) for e in rounds if name in e.metrics],
            "faint" if place else "text",
            _DASHES[place],
            _NAMES.get(name, name),
        )
        for place, name in enumerate(names)
    ]
    title = "epsilon spent so far" if known else "epsilon: none holds"
    norms = [(line.round, line.clipping_norm) for line in rounds if line.clipping_norm is not None]
    top = 1.18 * max((norm for _, norm in norms), default=1.0)
    adapted = line_chart("clipping norm", [Line(norms, "accent")], x, (0.0, top), below="round", whole=True)
    return [
        line_chart(title, lines, x, (0.0, highest * 1.18), below="round", whole=True),
        line_chart("scores on public test images", scores, x, (0.0, 1.0), below="round", whole=True),
        *([adapted] if norms else []),
    ]


def _ceiling(bounds: AttackerBounds) -> str:
    """Draw the largest true-positive rate of any membership test."""
    lines = [
        Line(bounds.curve, "accent", name="at most"),
        Line([(false, false) for false, _ in bounds.curve], "faint", "4 3", "guessing"),
    ]
    return line_chart("members found, at most", lines, (1e-4, 1.0), (0.0, 1.0), below="false alarms", percent=True)


def dpia_page(report: Report, *, public: bool) -> str:
    """Return a prefilled data protection impact assessment; the public one leaves out audit and per-site figures."""
    return environment(html=True).get_template("dpia.html.j2").render(r=report, public=public)


def evaluation_page(found: Mapping[str, Any]) -> str:
    """Return the JSON of an evaluation as one self-contained page: figures, labels, calibration and groups."""
    return environment(html=True).get_template("evaluation.html.j2").render(e=found)


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

    The block between our markers is replaced, or added at the ends of front matter and text where there are none.
    RunError where a marker is unpaired, or the front matter is not YAML afterwards.
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


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def interval(found: Mapping[str, float | None] | None, name: str = "") -> str:
    """Return ``[low, high]``, cut at the bounds of the figure ``name`` (empty: a difference), or nothing."""
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


def threat_models_page(models: Sequence[object], **terms: Mapping[str, str]) -> str:
    """Return threat models as Markdown with diagrams; ``terms`` name letters and ids: stride, linddun, atlas."""
    return environment(html=False).get_template("threat-models.md.j2").render(models=models, **terms)


def registry_entry(report: Report) -> str:
    """Return the entry as YAML: a draft that names what a run folder cannot know; RunError where it breaks its schema.

    References
    ----------
    Schema of the OpenDP deployments registry (``schemas/deployments-schema.yaml``, after research
    by Ghazi, Nanayakkara and Vadhan), in the layout of its entries of September 2026.
    """
    name = f"carefl-secure-{report.run.id}".lower()
    slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-")
    template = environment(html=False).get_template("registry.yaml.j2")
    entry = yaml.safe_load(template.render(r=report, slug=slug))
    price, delta = report.promise.epsilon, report.promise.delta
    if price is not None and delta is not None:
        entry["deployment"]["privacy_loss"]["privacy_parameters"] = {"epsilon": float(round_up(price)), "delta": delta}
    if report.verdict != "void":  # a void report replaces any earlier one, whatever the folder lacks
        check_registry_entry(entry)
    return yaml.dump(entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def check_registry_entry(entry: object) -> None:
    """Hold an entry against ``templates/registry.schema.yaml``; RunError names every field that breaks it."""
    from jsonschema import Draft202012Validator

    schema = yaml.safe_load((Path(__file__).parents[1] / "templates" / "registry.schema.yaml").read_text("utf-8"))
    found = [
        f"{one.json_path[2:] or 'the entry'}: {one.message}" for one in Draft202012Validator(schema).iter_errors(entry)
    ]
    if found:
        raise RunError(f"the registry entry breaks its schema; correct the run folder: {'; '.join(found)}")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, as the registry's own entries do."""


def _scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _scalar)
