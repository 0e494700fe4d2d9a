"""A site's own word on what runs it takes part in; read on the node, never sent by a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from carefl_secure.errors import ConfigError, PolicyError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan

__all__ = ["TEMPLATE", "Policy", "check_policy", "read_policy"]

TEMPLATE = """\
# What this site takes part in. A run that asks for more is refused here, whatever the server says.
# The most that all runs on one corpus may spend, and all runs on all corpora of this site.
max_epsilon_per_corpus: 8.0
max_epsilon_total: 16.0
# The largest delta of a run; keep it below one over the number of records. Write 1.0e-4, not 1e-4.
max_delta: 1.0e-4
# Fewest clients in a run, and fewest in any sum that is opened.
min_clients: 3
min_survivors: 3
# SHA-256 in hexadecimal; empty lists allow every base model and every plan.
allowed_base_models: []
allowed_plans: []
# peer, committee, encrypt.
allowed_aggregation: [pairwise, committee, encrypted]
# Whether a run without differential privacy is allowed.
allow_unprotected: false
# Ed25519 public keys, in hexadecimal, of those who may submit runs.
submitters: ["{submitter}"]
"""

_NUMBERS = ("max_epsilon_per_corpus", "max_epsilon_total", "max_delta")
_COUNTS = ("min_clients", "min_survivors")
_LISTS = ("allowed_base_models", "allowed_plans", "allowed_aggregation", "submitters")


@dataclass(frozen=True)
class Policy:
    """What a site allows; see `TEMPLATE` for each word."""

    max_epsilon_per_corpus: float
    max_epsilon_total: float
    max_delta: float
    min_clients: int
    min_survivors: int
    allowed_base_models: tuple[str, ...]
    allowed_plans: tuple[str, ...]
    allowed_aggregation: tuple[str, ...]
    submitters: tuple[str, ...]
    allow_unprotected: bool


def read_policy(path: Path) -> Policy:
    """Read ``policy.yaml``; a word that is missing or unknown is an error, not a default.

    Raises
    ------
    ConfigError
        When anything in it is not understood: a policy that is not understood allows nothing.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the policy {path} cannot be read: {error}") from error
    wanted = {*_NUMBERS, *_COUNTS, *_LISTS, "allow_unprotected"}
    if not isinstance(raw, dict) or set(raw) != wanted:
        held = set(map(str, raw)) if isinstance(raw, dict) else set()
        said = f"it lacks {', '.join(sorted(wanted - held)) or 'nothing'}"
        said += f" and does not know {', '.join(sorted(held - wanted)) or 'nothing else'}"
        raise ConfigError(
            f"the policy {path} must hold exactly: {', '.join(sorted(wanted))}; {said}"
        )
    for name in _NUMBERS:
        if type(raw[name]) not in (int, float) or not 0 < raw[name] < float("inf"):
            raise ConfigError(
                f"{path}: {name} must be a positive number, with a point in it if it has an e"
            )
    for name in _COUNTS:
        if type(raw[name]) is not int or raw[name] < 1:
            raise ConfigError(f"{path}: {name} must be a whole number from 1")
    for name in _LISTS:
        if not isinstance(raw[name], list) or not all(isinstance(x, str) for x in raw[name]):
            raise ConfigError(f"{path}: {name} must be a list of texts")
        raw[name] = tuple(x.lower() for x in raw[name])
    if type(raw["allow_unprotected"]) is not bool:
        raise ConfigError(f"{path}: allow_unprotected must be true or false")
    return Policy(**raw)


def check_policy(policy: Policy, plan: RunPlan, cohort: Cohort, submitter: bytes) -> None:
    """Refuse a run that goes against a site's policy; what was spent is the ledgers' part.

    Raises
    ------
    PolicyError
        Naming the first clause that is broken.
    """
    privacy = plan.privacy
    if submitter.hex() not in policy.submitters:
        raise PolicyError("its submitter is not on the list", "submitter")
    if cohort.base_hash.hex() not in (policy.allowed_base_models or (cohort.base_hash.hex(),)):
        raise PolicyError(f"base model {cohort.base_hash.hex()} is not on the list", "base")
    if plan.hash().hex() not in (policy.allowed_plans or (plan.hash().hex(),)):
        raise PolicyError(f"plan {plan.hash().hex()} is not on the list", "plan")
    if cohort.aggregation not in policy.allowed_aggregation:
        raise PolicyError(f"aggregation {cohort.aggregation} is not on the list", "aggregation")
    if privacy.clients < policy.min_clients or privacy.min_survivors < policy.min_survivors:
        raise PolicyError(
            f"{privacy.clients} clients with floor {privacy.min_survivors} are too few", "cohort"
        )
    if privacy.target_epsilon is None or not plan.protected:
        if not policy.allow_unprotected:
            raise PolicyError("the run has no differential privacy", "unprotected")
    elif privacy.target_epsilon > policy.max_epsilon_per_corpus:
        raise PolicyError(
            f"epsilon {privacy.target_epsilon:g} is above {policy.max_epsilon_per_corpus:g}",
            "epsilon",
        )
    elif privacy.delta > policy.max_delta:
        raise PolicyError(f"delta {privacy.delta:g} is above {policy.max_delta:g}", "delta")
