"""The report as data: ``carefl.privacy-report/1``, validated whenever it is made or read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from carefl_secure.rounding import html_table

Outcome: TypeAlias = Literal["held", "failed", "not checked"]
Finding: TypeAlias = tuple[Outcome, str]

HELD: Outcome = "held"
FAILED: Outcome = "failed"
UNCHECKED: Outcome = "not checked"


def owner(name: str) -> str:
    """Name the owner of a ledger."""
    return "the server" if name == "server" else f"client {name}"


def some(numbers: Sequence[int]) -> str:
    """List the first few numbers."""
    shown = ", ".join(str(number) for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"


FORMAT: Literal["carefl.privacy-report/1"] = "carefl.privacy-report/1"

Severity = Literal["Critical", "Theoretical", "Negligible"]
Verdict = Literal["accounted", "void", "unprotected"]
AuditVerdict = Literal["passed", "falsified", "measured", "skipped"]


class _Part(BaseModel):
    """What all parts share: frozen, nothing unknown, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunLine(_Part):
    """Which run this is."""

    id: str
    first_entry: str = Field(description="time of the first ledger entry, UTC")
    last_entry: str = Field(description="time of the last ledger entry, UTC")
    rounds_planned: int
    rounds_released: int
    data: str
    base_model: str
    simulated: bool = Field(description="all clients ran in one process as the server")


class Promise(_Part):
    """What is promised; without an epsilon where the report is void or the run unprotected."""

    epsilon: float | None
    delta: float | None
    flavour: str
    strength: str | None = Field(description="strong; reasonable, not strong; or weak")
    sentence: str
    protected_from: list[str]
    not_protected: list[str]


class Unit(_Part):
    """Unit of privacy."""

    kind: Literal["record", "person", "client", "none"]
    definition: str
    adjacency: str
    max_records_per_person: int | None = Field(description="null: nothing caps them")


class Trust(_Part):
    """Who sees what, and who is assumed honest."""

    setting: str
    secure_sum: bool
    clients: int
    min_survivors: int
    max_colluders: int
    honest_noise_clients: int
    masking_graph: dict[str, int] | None = Field(None, description="null: every two clients share a mask")
    sees: dict[str, str]


class Mechanism(_Part):
    """Noise, clipping and sampling."""

    name: str
    event: dict[str, float | int | str] | None
    count: int
    noise_multiplier: float
    clipping_norm: float
    normalised: bool
    clipped: str = Field(description="what the clipping norm bounds")
    sample_rate: float
    sampling: str
    normaliser: str
    noise_source: str


class CheckLine(_Part):
    """One condition and what was found."""

    name: str
    text: str
    outcome: Outcome
    detail: str


class Caveat(_Part):
    """A limit of the numbers."""

    severity: Severity
    text: str


class Attacker(_Part):
    """Upper bounds for any membership test."""

    method: Literal["PLD", "RDP"]
    why: str
    tpr_at_1_percent_fpr: float
    tpr_at_0_1_percent_fpr: float
    advantage: float
    mu: float | None = Field(description="null: too large to state")
    sentence: str


class Accounting(_Part):
    """How epsilon was computed."""

    accountant: str
    library: str
    composition: str
    recomputed_epsilon: float | None = Field(description="null: unknown, or none holds")
    claimed_epsilon: float | None
    agreed_epsilon: float | None = Field(description="null: the plan names no limit")
    by_round: str = Field(description="which rounds were priced")


class WhatIf(_Part):
    """Epsilon under other conditions."""

    case: str
    epsilon: float | None = Field(description="null: none holds")
    delta: float | None
    conditions: list[str]


class AuditLine(_Part):
    """One finding of an audit."""

    check: str
    verdict: AuditVerdict
    result: str | None
    ceiling: str | None = Field(description="what the promise allows; null: nothing is promised")
    interval: str | None = Field(description="of the result, 95 %")
    words: str


class AuditGroup(_Part):
    """All findings of one attack."""

    attack: str
    adversary: str
    verdict: AuditVerdict = Field(description="the worst of its findings")
    from_private_records: bool = Field(
        description="figures are not protected: for the auditor only, not for publication"
    )
    lines: list[AuditLine]


class Audit(_Part):
    """What audits found; never part of the card or the registry entry."""

    verdict: Literal["falsified", "not falsified"]
    groups: list[AuditGroup]


class RoundLine(_Part):
    """One finished round."""

    round: int
    epsilon: float | None
    survivors: int | None
    clipping_norm: float | None = Field(None, description="null where every round has the plan's")
    metrics: dict[str, float]


class ClientLine(_Part):
    """What one client spent."""

    client: str
    chain_whole: bool
    rounds_paid: int
    run_epsilon: float | None
    ledger_epsilon: float | None


class Tuning(_Part):
    """Whether runs made to choose settings are included in epsilon."""

    runs: int | None = Field(description="null: uncounted")
    counted: bool
    epsilon: float | None = Field(description="with the counted runs; null: unknown")
    sentence: str


class Report(_Part):
    """All content of the page, the card and the registry entry."""

    format: Literal["carefl.privacy-report/1"] = FORMAT
    verdict: Verdict
    reasons: list[str] = Field(description="why the report is void; empty otherwise")
    run: RunLine
    promise: Promise
    unit: Unit
    mechanism: Mechanism
    trust: Trust
    checks: list[CheckLine]
    caveats: list[Caveat]
    accounting: Accounting
    attacker: Attacker | None
    rounds: list[RoundLine]
    clients: list[ClientLine]
    what_if: list[WhatIf]
    audit: Audit | None = Field(description="null: no audit was made")
    tuning: Tuning
    preparation: list[str] = Field(default=[], description="what was measured on public records: forecast, rate")
    software: dict[str, str]
    plan_sha256: str
    ledger_head: str | None = Field(description="hash of the last entry of the server's ledger")

    def as_json(self) -> str:
        """Return the report as JSON text."""
        return self.model_dump_json(indent=2)

    def summary(self) -> str:
        """Return the verdict in one or two sentences."""
        if self.verdict == "void":
            return "VOID: no privacy can be claimed for this run. " + "; ".join(self.reasons)
        return self.promise.sentence

    def _repr_html_(self) -> str:
        """Show the verdict and the checks in a notebook."""
        rows = [(check.outcome, check.text, check.detail) for check in self.checks]
        return html_table((self.verdict, "check", "what was found"), rows, self.summary())
