"""The policy of a site: which runs it takes part in. Read on the node, never sent by a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, StringConstraints
from pydantic.dataclasses import dataclass

from carefl_secure.deployment.provisioning.documents import STRICT, Real, read_yaml
from carefl_secure.errors import ConfigError, PolicyError
from carefl_secure.federation.plan.cohort import AggregationConfig, Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy.plan import Trust

TEMPLATE = (Path(__file__).parent / "templates" / "policy.yaml").read_text("utf-8")

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]
_Positive = Annotated[Real, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Policy:
    """The clauses of a site; `TEMPLATE` describes each."""

    roster: _Hash
    max_epsilon_per_corpus: _Positive
    max_epsilon_total: _Positive
    max_delta: _Positive
    allowed_units: tuple[Literal["record", "person", "client"], ...]
    allowed_trust: tuple[Trust, ...]
    max_sample_rate: _Positive
    max_rounds: _Count
    min_colluders: Annotated[int, Field(ge=0)]
    min_clients: _Count
    min_survivors: _Count
    allowed_aggregation: tuple[str, ...]
    min_committee_members: _Count
    max_committee_dropout_tolerance: Annotated[int, Field(ge=0)]
    allowed_base_models: tuple[_Hash, ...]
    allowed_plans: tuple[_Hash, ...]
    allow_unprotected: bool
    submitters: tuple[_Hash, ...]


def read_policy(path: Path) -> Policy:
    """Read ``policy.yaml``; the `ConfigError` names every clause that is missing, unknown or out of range."""
    return read_yaml(path, Policy, ConfigError, "a policy must state every clause; see docs/deployment.md")


def check_policy(policy: Policy, plan: RunPlan, cohort: Cohort, submitter: bytes) -> None:
    """Refuse a run by a `PolicyError` with the first broken clause; past spending is checked by `SiteBudgets`."""
    for clause, text in _broken(policy, plan, cohort, submitter):
        raise PolicyError(text, clause)


def _broken(policy: Policy, plan: RunPlan, cohort: Cohort, submitter: bytes) -> Iterator[tuple[str, str]]:
    """Yield every broken clause with the reason for the site's own log."""
    privacy, members = plan.privacy, len(cohort.members)
    base, digest = cohort.base_hash.hex(), plan.hash().hex()
    if submitter.hex() not in policy.submitters:
        yield "submitter", "the submitter is not on the list"
    if policy.allowed_base_models and base not in policy.allowed_base_models:
        yield "base", f"base model {base} is not on the list"
    if policy.allowed_plans and digest not in policy.allowed_plans:
        yield "plan", f"plan {digest} is not on the list"
    if cohort.aggregation not in policy.allowed_aggregation:
        yield "aggregation", f"aggregation {cohort.aggregation} is not on the list"
    if cohort.members and (
        members < policy.min_committee_members
        or cohort.config.dropout_tolerance > policy.max_committee_dropout_tolerance
    ):
        yield ("committee", f"{members} members that may lose {cohort.config.dropout_tolerance} are too weak")
    if privacy.clients < policy.min_clients or privacy.min_survivors < policy.min_survivors:
        yield ("cohort", f"{privacy.clients} clients of which {privacy.min_survivors} must survive are too few")
    if privacy.trust == "secagg" and privacy.max_colluders < policy.min_colluders:
        yield ("colluders", f"{privacy.max_colluders} colluding clients are fewer than {policy.min_colluders}")
    if privacy.rounds > policy.max_rounds:
        yield "rounds", f"{privacy.rounds} rounds are more than {policy.max_rounds}"
    if privacy.target_epsilon is None or not plan.protected:
        if not policy.allow_unprotected:
            yield "unprotected", "the run has no differential privacy"
        return
    if privacy.unit not in policy.allowed_units:
        yield "unit", f"privacy unit {privacy.unit} is not on the list"
    if privacy.trust not in policy.allowed_trust:
        yield "trust", f"trust {privacy.trust} is not on the list"
    # Under unit client nobody is sampled.
    if privacy.unit != "client" and privacy.sample_rate > policy.max_sample_rate:
        rates = f"rate {privacy.sample_rate:g} is above {policy.max_sample_rate:g}"
        yield "sampling", f"{rates}; the submitter can lower privacy.sample_rate, or this site raise max_sample_rate"
    if privacy.target_epsilon > policy.max_epsilon_per_corpus:
        yield "epsilon", f"epsilon {privacy.target_epsilon:g} is above {policy.max_epsilon_per_corpus:g}"
    if privacy.delta > policy.max_delta:
        yield "delta", f"delta {privacy.delta:g} is above {policy.max_delta:g}"


def allow_run(path: Path, plan: RunPlan, aggregation: AggregationConfig, max_epsilon: float | None) -> None:
    """Let a local site's policy allow what its own person just asked for."""
    policy, privacy = yaml.safe_load(path.read_text()), plan.privacy
    target = privacy.target_epsilon or 0.0
    limit = max_epsilon or target or 1.0
    policy |= {
        "max_epsilon_per_corpus": limit,
        "max_epsilon_total": 2 * limit + target,
        "max_delta": privacy.delta,
        "max_sample_rate": 1.0,
        "max_rounds": privacy.rounds,
        "min_colluders": privacy.max_colluders,
        "min_clients": 1,
        "min_survivors": 1,
        "min_committee_members": 1,
        "max_committee_dropout_tolerance": aggregation.dropout_tolerance,
        "allow_unprotected": True,
    }
    path.write_text(yaml.safe_dump(policy))
