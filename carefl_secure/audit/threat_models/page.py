"""Threat models as a page with one diagram each, generated from the files alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from carefl_secure.audit.threat_models.schema import ATLAS, LINDDUN, STRIDE, Threat, ThreatModel

_HEAD = """# Threat models

Generated from `threat_models/*.yaml` by `carefl-secure threat-model render`: change the files, not
this page. `carefl-secure threat-model check` fails where a file names a test, a setting or an
attack that does not exist.

Letters: STRIDE {stride}. LINDDUN {linddun}.
Ids are those of MITRE ATLAS, terms those of NIST AI 100-2.
"""
_PLACES = {"server": "S", "client": "C", "helper": "K", "network": "N", "user": "U", "disk": "D"}


def render(models: Sequence[ThreatModel]) -> str:
    """Return the page as Markdown with Mermaid diagrams."""
    lines = [_HEAD.format(stride=_letters(STRIDE), linddun=_letters(LINDDUN))]
    lines += ["## What is not defended", ""]
    for model in models:
        for threat in model.threats:
            if threat.defended == "no":
                lines.append(f"* **{model.title}: {threat.id}.** {threat.residual}")
    lines.append("")
    lines += ["| adversary | threats | defended | partly | not |", "| --- | ---: | ---: | ---: | ---: |"]
    for model in models:
        counts = [sum(t.defended == d for t in model.threats) for d in ("yes", "partly", "no")]
        cells = " | ".join(map(str, [len(model.threats), *counts]))
        lines.append(f"| {model.title} | {cells} |")
    lines.append("")
    for model in models:
        lines += _model(model)
    return "\n".join(lines).rstrip() + "\n"


def _letters(names: dict[str, str]) -> str:
    return ", ".join(f"{letter} {word}" for letter, word in names.items())


def _model(model: ThreatModel) -> Iterator[str]:
    yield from (f"## {model.title}", "", model.summary, "")
    yield from _diagram(model)
    for title, items in (("Assets", model.assets), ("Sees", model.sees), ("Can", model.can)):
        yield f"**{title}.** " + "; ".join(items) + "."
        yield ""
    yield from (f"**Collusion.** {model.collusion}", "")
    for threat in model.threats:
        yield from _threat(threat)


def _diagram(model: ThreatModel) -> Iterator[str]:
    """Draw the data flow, with this adversary's position marked and its threats attached."""
    yield from ("```mermaid", "flowchart LR")
    yield "    D[(client disk)] --> C[client]"
    yield "    C -- masked vector --> N((network)) --> S[server]"
    yield "    K[key holder or helper] -. opens sums .-> S"
    yield "    S -- adapter --> U[user]"
    place = _PLACES[model.position]
    for number, threat in enumerate(model.threats):
        arrow = {"yes": "-. defended .->", "partly": "-. partly .->", "no": "==>"}[threat.defended]
        yield f"    {place} {arrow} T{number}([{threat.id}])"
    yield f"    style {place} fill:#f8d7da,stroke:#842029"
    yield from ("```", "")


def _threat(threat: Threat) -> Iterator[str]:
    yield from (f"### {threat.id}", "", threat.text, "")
    kinds = [f"STRIDE {' '.join(threat.stride)}"] if threat.stride else []
    kinds += [f"LINDDUN {' '.join(threat.linddun)}"] if threat.linddun else []
    kinds += [f"{key} {ATLAS[key]}" for key in threat.atlas]
    kinds += [", ".join(threat.nist)]
    yield from ("| | |", "| --- | --- |")
    yield f"| kind | {'; '.join(kinds)} |"
    yield f"| defended | **{threat.defended}** |"
    yield f"| by | {threat.mitigation} |"
    for title, names in (("settings", threat.keys), ("tests", threat.tests), ("measured by", threat.attacks)):
        if names:
            yield f"| {title} | {', '.join(f'`{name}`' for name in names)} |"
    yield from (f"| what remains | {threat.residual} |", "")
