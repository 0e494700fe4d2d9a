"""The whole audit of one run: every attack its adversaries could mount, and one verdict."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.attributes import (
    AttributeInference,
    AttributeView,
    Person,
    judge_attributes,
)
from carefl_secure.audit.canaries import GradientCanaries, judge_canaries
from carefl_secure.audit.conformance import Conformance, MachineView
from carefl_secure.audit.membership import RATES, AdapterView, Membership, judge_membership
from carefl_secure.audit.reconstruction import SpanCheck, Texts, judge_spans
from carefl_secure.audit.rehearsal import Rehearsal, rehearse
from carefl_secure.audit.subject import Known, Subject, Vector
from carefl_secure.audit.transcript import ServerEyes, judge_transcript
from carefl_secure.audit.views import Finding
from carefl_secure.errors import ConfigError, PrivacyError, RunError
from carefl_secure.federation.folder import write_atomically
from carefl_secure.federation.train import key_source
from carefl_secure.model.loader import load_base
from carefl_secure.privacy.attacker import attacker_bounds
from carefl_secure.progress import Reporter

__all__ = ["ATTACKS", "AuditResult", "audit_run", "refuse_falsified"]

FORMAT = "carefl.audit/1"
_TASK = "audit"
_PROBED = 16
_SCOPE = (
    "Conformance, server view, canaries and reconstruction judge the program as it is installed "
    "now, under the configuration of the run. Membership and attributes judge the adapter. "
    "The audit reads private records, and its figures are not covered by the run's promise: keep "
    "them where the records are."
)


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Parameters
    ----------
    run : str
        Name of the run.
    findings : tuple of Finding
    seconds : float
    """

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
        return (
            f"not falsified by {len(self.findings)} checks; an audit finds faults, it proves "
            "no privacy"
        )

    def as_markdown(self) -> str:
        """Return the result as a page."""
        lines = [f"# Audit of {self.run}", "", self.summary() + ".", "", _SCOPE, ""]
        for attack in dict.fromkeys(f.attack for f in self.findings):
            lines += [
                f"## {attack}",
                "",
                "| check | verdict | what was found |",
                "| --- | --- | --- |",
            ]
            lines += [
                f"| {f.check} | {f.verdict} | {f.words} |"
                for f in self.findings
                if f.attack == attack
            ]
            lines.append("")
        return "\n".join(lines)


class _Desk:
    """What several attacks need, made once."""

    def __init__(self, subject: Subject, records: int, canaries: int, reporter: Reporter) -> None:
        self.subject = subject
        self._records = records
        self._canaries = canaries
        self._reporter = reporter
        self._rehearsal: Rehearsal | None = None
        self._people: tuple[Known, Known, Known] | None = None

    def rehearsal(self) -> Rehearsal:
        """Rehearse the run on canaries."""
        if self._rehearsal is None:
            keys = key_source(self.subject.config)
            self._rehearsal = rehearse(
                self.subject.config, keys, canaries=self._canaries, reporter=self._reporter
            )
        return self._rehearsal

    def quiet(self) -> tuple[Rehearsal, Rehearsal]:
        """Open one round of no records, twice, at the run's own size."""
        plan, config = self.subject.plan, self.subject.config
        one = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, rounds=1))
        first, second = (
            rehearse(
                config,
                key_source(config),
                canaries=0,
                plan=one,
                empty=True,
                reporter=self._reporter,
            )
            for _ in range(2)
        )
        return first, second

    def people(self) -> tuple[Known, Known, Known]:
        """Return members, others and the population."""
        if self._people is None:
            subject, count = self.subject, self._records
            self._people = (
                subject.known(subject.corpora.private, count),
                subject.known(subject.outsiders(count, 0), count),
                subject.known(subject.outsiders(count, 1), count),
            )
        return self._people


def _conformance(desk: _Desk) -> list[Finding]:
    subject = desk.subject
    probe = subject.probe(subject.known(subject.corpora.private, _PROBED))
    view = MachineView(subject.plan, desk.rehearsal(), desk.quiet(), probe, subject.tuned)
    return Conformance()(view)


def _server(desk: _Desk) -> list[Finding]:
    view = desk.rehearsal().transcript()
    return judge_transcript(view, ServerEyes()(view))


def _canaries(desk: _Desk) -> list[Finding]:
    rehearsal = desk.rehearsal()
    return [judge_canaries(rehearsal, GradientCanaries()(rehearsal.releases()))]


def _reconstruction(desk: _Desk) -> list[Finding]:
    """Attack what the run's clients send; and, where A rests, what they would send if it moved."""
    findings = _spans(desk, desk.subject.config.adapter.train)
    if desk.subject.config.adapter.train == "B":
        findings += [
            dataclasses.replace(f, check=f"{f.check}, were A trained too")
            for f in _spans(desk, "both")
            if f.verdict == "measured"
        ]
    return findings


def _spans(desk: _Desk, train: str) -> list[Finding]:
    config, plan = desk.subject.config, desk.subject.plan
    base = load_base(
        config.model.base,
        revision=config.model.revision,
        quantization=config.model.quantization,
        compute_dtype=config.model.compute_dtype,
    )
    return judge_spans(
        Texts(base, rank=config.adapter.rank, alpha=config.adapter.alpha, train=train),
        clients=plan.privacy.clients,
        noise_multiplier=plan.noise_multiplier,
        clipping_norm=plan.privacy.clipping_norm,
        private_text=config.model.context not in ("none", "constant"),
    )


def _membership(desk: _Desk) -> list[Finding]:
    subject = desk.subject
    members, others, population = desk.people()

    def candidates(adapter: Vector) -> npt.NDArray[np.float64]:
        return np.concatenate([subject.losses(k, adapter) for k in (members, others)])

    view = AdapterView(
        candidates(subject.tuned),
        candidates(subject.initial),
        subject.losses(population, subject.tuned),
        subject.losses(population, subject.initial),
    )
    ceilings = None
    if subject.plan.event is not None:
        spent = subject.plan.event.times(subject.plan.privacy.rounds)
        ceilings = attacker_bounds([spent], RATES).true_positive_rate
    member = np.arange(len(view.tuned)) < len(members.targets)
    return judge_membership(Membership()(view), member, ceilings)


def _attributes(desk: _Desk) -> list[Finding]:
    subject = desk.subject
    parts = desk.people()
    members, others, population = (
        Person(
            known.targets.astype(np.float64),
            subject.scores(known, subject.initial),
            subject.scores(known, subject.tuned),
        )
        for known in parts
    )
    both = Person(
        *(
            np.concatenate([getattr(members, name), getattr(others, name)])
            for name in ("labels", "base", "tuned")
        )
    )
    member = np.arange(len(both.labels)) < len(members.labels)
    names = sorted({name for record in parts[0].corpus.records for name in record.attributes})
    findings = []
    for name in names:
        values = parts[2].attribute(name)
        if len(np.unique(values)) < 2:
            continue
        truth = np.concatenate([parts[0].attribute(name), parts[1].attribute(name)])
        guesses = AttributeInference()(AttributeView(both, population, values))
        findings.append(judge_attributes(name, guesses, truth, member))
    if not findings:
        words = "The records carry no attributes, so there is nothing to infer."
        findings.append(Finding(AttributeInference.name, "attributes", "skipped", words, {}))
    return findings


ATTACKS: dict[str, Callable[[_Desk], list[Finding]]] = {
    Conformance.name: _conformance,
    ServerEyes.name: _server,
    GradientCanaries.name: _canaries,
    SpanCheck.name: _reconstruction,
    Membership.name: _membership,
    AttributeInference.name: _attributes,
}
"""Every attack by the name that threat models use."""


def audit_run(
    path: Path,
    reporter: Reporter,
    *,
    attacks: Sequence[str] | None = None,
    records: int = 1000,
    canaries: int = 1000,
    name: str = "audit",
) -> AuditResult:
    """Attack a finished run and keep what was found in its ``audit/`` folder.

    Nothing is spent: rehearsals keep ledgers of their own, and those of the clients are not
    touched. But private records are read, and no noise is added to what is written about them.

    Parameters
    ----------
    path : Path
        The run folder.
    reporter : Reporter
    attacks : sequence of str, optional
        Names out of :data:`ATTACKS`; all by default.
    records : int
        Members, others and population for the attacks on the adapter, each.
    canaries : int
        Coins of the one-run audit.
    name : str
        Of the two files; a partial audit should not replace a whole one.

    Returns
    -------
    AuditResult

    Raises
    ------
    ConfigError
        If an attack is unknown.
    RunError
        If the folder is no finished run.
    """
    wanted = list(ATTACKS) if attacks is None else list(dict.fromkeys(attacks))
    unknown = [attack for attack in wanted if attack not in ATTACKS]
    if unknown:
        raise ConfigError(
            f"there is no attack {', '.join(unknown)}; there are {', '.join(ATTACKS)}"
        )
    started = time.monotonic()
    desk = _Desk(Subject(path, reporter), records, canaries, reporter)
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


def refuse_falsified(result: AuditResult) -> None:
    """Raise where a promise was falsified.

    Raises
    ------
    PrivacyError
        Naming every promise that does not hold.
    """
    if result.falsified:
        raise PrivacyError(
            f"{result.summary()}. Do not release this run's adapter; its audit folder says "
            "what was found"
        )
