"""The attacks on a finished run, with the inputs that several of them share made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.attacks.attributes import AttributeInference, AttributeView, Person, judge_attributes
from carefl_secure.audit.attacks.canaries import GradientCanaries, judge_canaries
from carefl_secure.audit.attacks.client_canaries import ClientCanaries, judge_clients, rehearse_clients
from carefl_secure.audit.attacks.exposure import Exposure, judge_natural, natural_exposure
from carefl_secure.audit.attacks.image_inversion import ImageMatching, Pictures
from carefl_secure.audit.attacks.image_trials import counted_noise, invert_images, judge_images, pick_ceiling
from carefl_secure.audit.attacks.membership import RATES, AdapterView, Membership, judge_membership
from carefl_secure.audit.attacks.server_transcript import ServerEyes, judge_transcript
from carefl_secure.audit.attacks.text_inversion import SpanCheck, Texts, judge_spans
from carefl_secure.audit.attacks.transcript import MemberEyes, judge_helpers
from carefl_secure.audit.audited_run import AuditedRun, Known, RealProbe, Vector
from carefl_secure.audit.conformance.checks import Conformance, MachineView
from carefl_secure.audit.conformance.released import drive
from carefl_secure.audit.replay.canary_run import plan_like, rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Finding
from carefl_secure.federation.plan.cohort import PROTOCOLS
from carefl_secure.model.loader import load_base
from carefl_secure.privacy.accounting.attack_bounds import attacker_bounds
from carefl_secure.progress import Reporter
from carefl_secure.runs.build import key_source

_PROBED = 16
_CANDIDATES = 100
_FILLERS = 20
_INVERTED = 2


class AttackSuite:
    """What several attacks need, made once."""

    def __init__(self, subject: AuditedRun, records: int, canaries: int, reporter: Reporter) -> None:
        self.subject = subject
        self._records = records
        self._canaries = canaries
        self._reporter = reporter

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """The run, rehearsed on canaries."""
        config = self.subject.config
        return rehearse(config, key_source(config), canaries=self._canaries, reporter=self._reporter)

    def quiet(self) -> tuple[Rehearsal, Rehearsal]:
        """Open one round of no records, or a whole band of them, twice, at the run's own size."""
        plan, config = self.subject.plan, self.subject.config
        once = dataclasses.replace(plan.privacy, rounds=1 if plan.privacy.bands == 1 else plan.privacy.bands + 1)
        steady = plan.local and dataclasses.replace(plan.local, stragglers=0.0)
        one = dataclasses.replace(plan, privacy=once, local=steady)
        first, second = (
            rehearse(config, key_source(config), canaries=0, plan=one, empty=True, reporter=self._reporter)
            for _ in range(2)
        )
        return first, second

    @cached_property
    def people(self) -> tuple[Known, Known, Known]:
        """Members, others and the population."""
        subject, count = self.subject, self._records
        corpora = (subject.corpora.private, subject.outsiders(count, 0), subject.outsiders(count, 1))
        members, others, population = (subject.known(corpus, count) for corpus in corpora)
        return members, others, population


def _conformance(desk: AttackSuite) -> list[Finding]:
    subject = desk.subject
    probe = RealProbe(subject, subject.known(subject.corpora.private, _PROBED))
    view = MachineView(subject.plan, desk.rehearsal, desk.quiet(), probe, subject.opening, drive(subject.config))
    return Conformance()(view)


def _server(desk: AttackSuite) -> list[Finding]:
    view = desk.rehearsal.transcript()
    if view.aggregation not in PROTOCOLS:
        words = f"The messages of {view.aggregation!r}, from another package, cannot be read here."
        return [ServerEyes.skip("messages", words)]
    return judge_transcript(view, ServerEyes()(view))


def _canaries(desk: AttackSuite) -> list[Finding]:
    if desk.subject.plan.privacy.unit == "client":
        words = "The run protects whole clients, not single records; see client-canaries."
        return [GradientCanaries.skip("records", words)]
    rehearsal = desk.rehearsal
    return [judge_canaries(rehearsal, GradientCanaries()(rehearsal.releases()))]


def _clients(desk: AttackSuite) -> list[Finding]:
    """Try the promise of unit client; other units promise nothing about whole clients."""
    config, privacy = desk.subject.config, desk.subject.plan.privacy
    if privacy.unit != "client":
        words = f"The run's unit is {privacy.unit}: nothing is promised about whole clients."
        return [ClientCanaries.skip("clients", words)]
    plan = plan_like(config, max(64, privacy.clients), 1)
    rehearsal, coins = rehearse_clients(config, key_source(config), plan)
    return [judge_clients(rehearsal, ClientCanaries()(rehearsal.releases()), coins)]


def _images(desk: AttackSuite) -> list[Finding]:
    """Match one record's plain update at the released adapter, and the same under protection."""
    subject = desk.subject
    known = subject.known(subject.corpora.private, _CANDIDATES + _FILLERS)
    count = min(_CANDIDATES, len(known.targets) - _FILLERS)
    if count < 2:
        return [ImageMatching.skip("images", "The run has too few records for a stack of candidates.")]
    pictures = Pictures(subject.scorer, subject.tuned, known.features, known.targets, known.captions, candidates=count)
    plan = subject.plan
    findings = judge_images(
        pictures,
        clients=min(plan.privacy.clients, _FILLERS + 1),
        noise_multiplier=counted_noise(plan),
        ceiling=pick_ceiling(plan, count),
    )
    if subject.config.model.base == "embedded":  # a search through a large model takes hours here
        findings += invert_images(pictures, noise_multiplier=counted_noise(plan), trials=_INVERTED)
    return findings


def _exposure(desk: AttackSuite) -> list[Finding]:
    subject = desk.subject
    members, others, _ = desk.people
    multi = subject.corpora.private.space.multi

    def bits(adapter: Vector) -> npt.NDArray[np.float64]:
        return np.concatenate(
            [natural_exposure(subject.scores(known, adapter), known.targets, multi) for known in (members, others)]
        )

    member = np.arange(len(members.targets) + len(others.targets)) < len(members.targets)
    return [judge_natural(bits(subject.initial), bits(subject.tuned), member)]


def _reconstruction(desk: AttackSuite) -> list[Finding]:
    """Attack what the run's clients send; and, where A rests, what they would send if it moved."""
    findings = _spans(desk, desk.subject.config.adapter.train)
    if desk.subject.config.adapter.train == "B":
        findings += [
            dataclasses.replace(f, check=f"{f.check}, were A trained too")
            for f in _spans(desk, "both")
            if f.verdict == "measured"
        ]
    return findings


def _spans(desk: AttackSuite, train: str) -> list[Finding]:
    config, plan = desk.subject.config, desk.subject.plan
    base = load_base(
        config.model.base,
        revision=config.model.revision,
        quantization=config.model.quantization,
        compute_dtype=config.model.compute_dtype,
        device=config.model.device,
    )
    return judge_spans(
        Texts(base, rank=config.adapter.rank, alpha=config.adapter.alpha, train=train),
        clients=plan.privacy.clients,
        noise_multiplier=counted_noise(plan),
        clipping_norm=plan.privacy.clipping_norm,
        private_text=config.model.context not in ("none", "constant"),
    )


def _membership(desk: AttackSuite) -> list[Finding]:
    subject = desk.subject
    members, others, population = desk.people

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
        ceilings = attacker_bounds(subject.planned, RATES).true_positive_rate
    member = np.arange(len(view.tuned)) < len(members.targets)
    return judge_membership(Membership()(view), member, ceilings)


def _attributes(desk: AttackSuite) -> list[Finding]:
    subject = desk.subject
    parts = desk.people
    members, others, population = (
        Person(
            known.targets.astype(np.float64),
            subject.scores(known, subject.initial),
            subject.scores(known, subject.tuned),
        )
        for known in parts
    )
    both = Person(
        *(np.concatenate([getattr(members, name), getattr(others, name)]) for name in ("labels", "base", "tuned"))
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
        findings.append(AttributeInference.skip("attributes", words))
    return findings


ATTACKS: dict[str, Callable[[AttackSuite], list[Finding]]] = {
    Conformance.name: _conformance,
    ServerEyes.name: _server,
    MemberEyes.name: lambda desk: judge_helpers(desk.rehearsal.members(), desk.rehearsal.holder()),
    GradientCanaries.name: _canaries,
    ClientCanaries.name: _clients,
    SpanCheck.name: _reconstruction,
    ImageMatching.name: _images,
    Membership.name: _membership,
    Exposure.name: _exposure,
    AttributeInference.name: _attributes,
}
"""Every attack by the name that threat models use."""
