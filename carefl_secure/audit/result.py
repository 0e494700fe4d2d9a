"""The outcome of an audit: every finding, one verdict, two files."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from carefl_secure.audit.views import Finding
from carefl_secure.errors import PrivacyError
from carefl_secure.rounding import html_table

FORMAT = "carefl.audit/1"
_SCOPE = (
    "Conformance, server and helper views, both kinds of canaries and reconstruction judge the "
    "program as it is installed now, under the configuration of the run. Images, membership, "
    "exposure and attributes judge the adapter. The audit reads private records, and its figures "
    "are not covered by the run's promise: keep them where the records are."
)


@dataclass(frozen=True)
class AuditResult:
    """The findings of an audit of one run, named ``run``."""

    run: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def falsified(self) -> tuple[Finding, ...]:
        """The promises that do not hold."""
        return tuple(f for f in self.findings if f.verdict == "falsified")

    def as_json(self) -> str:
        """Return the result as JSON text."""
        content = {
            "format": FORMAT,
            "run": self.run,
            "verdict": "falsified" if self.falsified else "not falsified",
            "scope": _SCOPE,
            "confidence": 0.95,
            "seconds": round(self.seconds, 1),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        if self.falsified:
            names = ", ".join(f"{f.attack}: {f.check}" for f in self.falsified)
            return f"FALSIFIED: {names}"
        return f"not falsified by {len(self.findings)} checks; an audit finds faults, it proves no privacy"

    def _repr_html_(self) -> str:
        """Show the findings in a notebook."""
        rows = [(one.verdict, one.attack, one.check, one.words) for one in self.findings]
        return html_table(("verdict", "attack", "check", "finding"), rows, self.summary())

    def as_markdown(self) -> str:
        """Return the result as a page."""
        lines = [f"# Audit of {self.run}", "", self.summary() + ".", "", _SCOPE, ""]
        for attack in dict.fromkeys(f.attack for f in self.findings):
            lines += [f"## {attack}", "", "| check | verdict | what was found |", "| --- | --- | --- |"]
            lines += [f"| {f.check} | {f.verdict} | {f.words} |" for f in self.findings if f.attack == attack]
            lines.append("")
        return "\n".join(lines)


def refuse_falsified(result: AuditResult) -> None:
    """Raise PrivacyError, naming every promise that does not hold, where there is one."""
    if result.falsified:
        raise PrivacyError(
            f"{result.summary()}. Do not release this run's adapter; its audit folder says what was found"
        )
