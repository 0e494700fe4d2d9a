"""The model card of the adapter: our block is inserted or replaced, nothing else is changed."""

from __future__ import annotations

import re

import yaml

from carefl_secure.errors import RunError
from carefl_secure.report.render.page import markdown_section
from carefl_secure.report.schema import Report
from carefl_secure.rounding import round_up

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
        "adjacency": report.unit.adjacency,
        "mechanism": report.mechanism.name,
        "strength": report.promise.strength,
        "plan_sha256": report.plan_sha256,
    }
    return yaml.safe_dump({"differential_privacy": facts}, sort_keys=False, width=1000)
