"""What audits of the run found, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from carefl_secure.errors import RunError
from carefl_secure.report.schema import FAILED, HELD, UNCHECKED, Audit, AuditGroup, AuditLine, AuditVerdict, Finding
from carefl_secure.strict_json import load_json

_FORMAT = "carefl.audit/1"

ADVERSARIES: Mapping[str, str] = {
    "conformance": "the auditor of one's own machine",
    "server-view": "the server",
    "helper-view": "one member of the committee, or the key holder",
    "canaries": "anyone who sees the opened sums",
    "client-canaries": "anyone who sees the opened sums",
    "reconstruction": "anyone who gets hold of one client's update",
    "images": "anyone who gets hold of one client's update and has candidates",
    "membership": "a user of the released adapter",
    "exposure": "a user of the released adapter who guesses secrets",
    "attributes": "a user of the released adapter who knows the rest of a record",
}
"""The adversary of each attack; a test compares this with the attacks themselves."""

_TRAFFIC = ("server-view", "helper-view")  # computed from the messages of a replay, not from records
_BOUND = "epsilon lower bound: "
_REACH = "attainable with "


class AuditFinding(BaseModel):
    """One line of an audit's file."""

    model_config = ConfigDict(frozen=True)

    attack: str
    check: str
    verdict: AuditVerdict
    words: str
    figures: dict[str, Any]


def read_audits(run: Path, run_id: str) -> tuple[AuditFinding, ...] | None:
    """Read all findings of all ``audit/*.json``, whole or partial; None where there is none.

    All are read so that none can be hidden under another name. RunError is raised for a file that cannot be read as an
    audit or belongs to another run: a report must not omit what it cannot read.
    """
    files = sorted((run / "audit").glob("*.json"))
    found: list[AuditFinding] = []
    for file in files:
        try:
            content = load_json(file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            owner = str(content["run"])
            found += map(AuditFinding.model_validate, content["findings"])
            falsified = any(finding.verdict == "falsified" for finding in found)
            if content["verdict"] == "falsified" and not falsified:
                raise ValueError("its verdict names no finding")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{file} cannot be read as an audit ({_FORMAT}); audit the run again or remove it: {error}"
            ) from error
        if owner != run_id:
            raise RunError(f"{file} is an audit of run {owner}, not of {run_id}; audit this run or remove it")
    return tuple(found) if files else None


def judge_audits(findings: Sequence[AuditFinding] | None) -> Finding:
    """Turn what audits found into a check; its detail, which is published, holds no unprotected figure."""
    if findings is None:
        return UNCHECKED, "no audit was made of this run"
    bad = [f"{one.attack} ({one.check})" for one in findings if one.verdict == "falsified"]
    if bad:
        return FAILED, f"an audit falsified the promise: {', '.join(bad)}"
    tried = sum(one.verdict == "passed" for one in findings)
    return HELD, f"{tried} checks of an audit did not falsify it, which proves no privacy"


def audit_part(findings: Sequence[AuditFinding] | None) -> Audit | None:
    """Return the audit section of a report."""
    if findings is None:
        return None
    groups = [
        _group(attack, [one for one in findings if one.attack == attack])
        for attack in dict.fromkeys(one.attack for one in findings)
    ]
    return Audit(
        verdict="falsified" if any(g.verdict == "falsified" for g in groups) else "not falsified", groups=groups
    )


def _group(attack: str, findings: Sequence[AuditFinding]) -> AuditGroup:
    verdicts = {one.verdict for one in findings}
    worst = next(v for v in ("falsified", "passed", "measured", "skipped") if v in verdicts)
    return AuditGroup(
        attack=attack,
        adversary=ADVERSARIES.get(attack, "not stated"),
        verdict=worst,
        from_private_records=attack not in _TRAFFIC,
        lines=[AuditLine(check=one.check, verdict=one.verdict, words=one.words, **_measured(one)) for one in findings],
    )


def _measured(one: AuditFinding) -> dict[str, str | None]:
    """Return result, ceiling and 95 % interval in words, where a finding has them."""
    figures = {
        name: float(value)
        for name, value in one.figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    bounds = {name: value for name, value in figures.items() if name.startswith(_BOUND)}
    result = ceiling = interval = None
    if bounds:
        reach = [value for key, value in figures.items() if key.startswith(_REACH)]
        best = f" (a perfect attack here: {max(reach):.2f})" if reach else ""
        result, ceiling = f"epsilon at least {max(bounds.values()):.2f}", f"epsilon claimed{best}"
        interval = "95 %, one-sided"
    elif "TPR at 0.01 FPR" in figures:
        result = f"{100.0 * figures['TPR at 0.01 FPR']:.1f} % at 1 % false alarms"
        if "ceiling at 0.01 FPR" in figures:
            ceiling = f"{100.0 * figures['ceiling at 0.01 FPR']:.1f} %"
        error, auc = figures.get("AUC standard error, at most"), figures.get("AUC")
        if error is not None and auc is not None:
            interval = f"AUC {auc - 1.96 * error:.3f} to {auc + 1.96 * error:.3f}"
    elif name := next((name for name in ("hit rate", "recall") if name in figures), ""):
        result = f"{name} {figures[name]:.3f}"
        ceiling = f"{figures['ceiling']:.3f}" if "ceiling" in figures else None
        low, high = figures.get(f"{name}, 95 % low"), figures.get(f"{name}, 95 % high")
        interval = None if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return {"result": result, "ceiling": ceiling, "interval": interval}
