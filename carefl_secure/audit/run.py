"""The whole audit of one run: every attack its adversaries could mount, and one verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from carefl_secure.audit.audited_run import AuditedRun
from carefl_secure.audit.result import AuditResult, refuse_falsified
from carefl_secure.audit.suite import ATTACKS, AttackSuite
from carefl_secure.audit.views import Finding
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import write_atomically

__all__ = ["ATTACKS", "AuditResult", "audit_run", "refuse_falsified"]

_TASK = "audit"


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
    attacks : sequence of str, optional
        Names from :data:`ATTACKS` (ConfigError for any other); all by default.
    records : int
        Members, others and population for the attacks on the adapter, each.
    canaries : int
        Coins of the one-run audit.
    name : str
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
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from error
    write_atomically(folder / f"{name}.json", result.as_json().encode() + b"\n")
    write_atomically(folder / f"{name}.md", result.as_markdown().encode())
    return result
