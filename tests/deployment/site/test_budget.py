"""What a site's corpora cost together, where later runs may depend on earlier ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from carefl_secure.deployment.provisioning.policy import read_policy
from carefl_secure.deployment.site.budget import SiteBudgets
from carefl_secure.errors import BudgetExceededError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.accounting.composition import filtered_epsilon
from tests.support.sites import known_plan, make_bundles


def test_corpora_go_through_one_filter_and_not_by_the_sum_of_their_prices(tmp_path: Path) -> None:
    """The other corpus nearly fills the limit: the sum of two prices would leave room for one round more."""
    plan = known_plan("record", 3)
    assert plan.event is not None
    delta = plan.privacy.delta
    small = dataclasses.replace(plan.event, variance=1000 * plan.event.variance)
    other = Ledger(tmp_path / "other.jsonl", {"client": "other"})
    for number in range(3):
        other.spend(plan.event, 100.0, delta, {"run": f"run-{number}", "round": 1})
    mine = Ledger(tmp_path / "mine.jsonl", {"client": "mine"})
    mine.spend(small, 100.0, delta, {"run": "earlier", "round": 1})
    added = other.epsilon(delta) + mine.epsilon(delta)
    policy = read_policy(make_bundles(tmp_path / "sites") / "sites" / "s0" / "policy.yaml")
    joint = filtered_epsilon([], [*other.events(), *mine.events()], added, delta)
    assert joint > added

    def check(limit: float) -> None:
        held = dataclasses.replace(policy, max_epsilon_per_corpus=100.0, max_epsilon_total=limit)
        nothing = Cohort(b"earlier", tuple(bytes([i]) * 32 for i in range(4)), bytes(32))
        SiteBudgets(held, tmp_path, mine, plan, nothing)._check(0)

    with pytest.raises(BudgetExceededError, match="max_epsilon_total"):
        check(added + 0.5 * (joint - added))
    check(2.0 * added)
