"""The whole audit of one run: every attack its adversaries could mount, and one verdict."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.audit.audited_run import AuditedRun
from carefl_secure.audit.suite import ATTACKS, AttackSuite
from carefl_secure.audit.views import Finding
from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.progress import Reporter
from carefl_secure.rounding import html_table
from carefl_secure.run_folder import make_folder, write_atomically

__all__ = ["ATTACKS", "AuditResult", "audit_run", "refuse_falsified"]

_TASK = "audit"
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


def audit_run(
    path: Path,
    reporter: Reporter,
    *,
    attacks: Sequence[str] | None = None,
    records: int = 1000,
    canaries: int = 1000,
    name: str = "audit",
) -> AuditResult:
    """Attack a finished run and write the findings to its ``audit/`` folder.

    Nothing is spent: rehearsals keep their own ledgers. But private records are read, and no noise
    is added to what is written about them.

    Parameters
    ----------
    attacks : Sequence[str], optional
        Names from :data:`ATTACKS` (ConfigError for any other); all by default.
    records : int, optional
        Members, others and population for the attacks on the adapter, each.
    canaries : int, optional
        Coins of the one-run audit.
    name : str, optional
        Of the two files; a partial audit should not replace a whole one.
    """
    wanted = list(ATTACKS) if attacks is None else list(dict.fromkeys(attacks))
    unknown = [attack for attack in wanted if attack not in ATTACKS]
    if unknown:
        raise ConfigError(f"there is no attack {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    started = time.monotonic()
    desk = AttackSuite(AuditedRun(path, reporter), records, canaries, reporter)
    findings: list[Finding] = []
    reporter.start(_TASK, len(wanted))
    for attack in wanted:
        found = ATTACKS[attack](desk)
        findings += found
        for finding in found:
            reporter.note(f"{finding.verdict}: {finding.attack}, {finding.check}. {finding.words}")
        reporter.advance(_TASK)
    reporter.finish(_TASK)
    result = AuditResult(desk.subject.folder.run_id, tuple(findings), time.monotonic() - started)
    folder = desk.subject.folder.path / "audit"
    make_folder(folder)
    write_atomically(folder / f"{name}.json", result.as_json().encode() + b"\n")
    write_atomically(folder / f"{name}.md", result.as_markdown().encode())
    return result
