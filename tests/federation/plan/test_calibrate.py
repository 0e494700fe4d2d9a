"""The plan: noise that keeps the target, shares that add up, and settings that are refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from carefl_secure.errors import BudgetExceededError, ConfigError, PrivacyError
from carefl_secure.federation.plan import calibrate as planning
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import Cohort, rotation_key
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import epsilon
from carefl_secure.secagg.primitives.agreement import Agreement

PlanToy = Callable[..., RunPlan]
ROSTER = tuple(bytes([i]) * 32 for i in range(6))


@pytest.mark.parametrize("rounds", [1, 7, 40])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_all_rounds_together_reach_the_target_and_not_more(plan_toy: PlanToy, rounds: int, target: float) -> None:
    plan = plan_toy(rounds=rounds, target_epsilon=target)
    assert plan.event is not None
    price = epsilon([plan.event] * rounds, plan.privacy.delta)
    assert 0.999 * target < price <= target


def test_the_noise_of_a_known_run_is_the_one_in_the_literature() -> None:
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=4000,
            clients=4,
            rounds=300,
            public_records=10_000,
            sample_rate=0.01,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=8.0,
        )
    )
    # PLD of the Poisson-sampled Gaussian gives 0.5139 (RDP 0.5594); Skellam noise of this size is
    # proved to be within 1.5 % of it in so few dimensions, never better
    assert 0.5139 < plan.noise_multiplier < 1.015 * 0.5139


@pytest.mark.parametrize(("clients", "colluders"), [(3, 1), (6, 1), (10, 0), (10, 3)])
def test_honest_survivors_alone_hold_the_counted_variance(plan_toy: PlanToy, clients: int, colluders: int) -> None:
    plan = plan_toy(clients, max_colluders=colluders)
    honest = plan.privacy.min_survivors - colluders
    counted = (plan.noise_multiplier * plan.encoding.l2_sensitivity) ** 2
    assert plan.share_variance * honest == pytest.approx(counted, rel=1e-12)
    assert plan.event is not None
    assert plan.event.variance == pytest.approx(counted, rel=1e-12)
    assert plan.event.dimension == plan.encoding.padded == 60
    assert (plan.event.l1, plan.event.l2) == (plan.encoding.l1_sensitivity, plan.encoding.l2_sensitivity)


def test_the_floor_is_two_thirds_and_rises_with_the_colluders(plan_toy: PlanToy) -> None:
    assert plan_toy(6, max_colluders=1).privacy.min_survivors == 5
    for clients in (6, 7, 10, 15):
        for colluders in range(4):
            plan = plan_toy(clients, max_colluders=colluders)
            # two survivor sets of this size cannot both be signed by enough honest clients
            assert 2 * plan.threshold > clients + colluders
            assert plan.privacy.min_survivors == plan.threshold


@pytest.mark.parametrize(
    "changes",
    [
        {"max_colluders": 6},
        {"min_survivors": 4},
        {"min_survivors": 7},
        {"target_epsilon": None},
        {"target_epsilon": 0.0},
        {"target_epsilon": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"delta": 0.5},
        {"clipping_norm": math.inf},
        {"rounds": 0},
        {"dimension": 0},
        {"public_records": 10**7},
    ],
)
def test_what_contradicts_itself_is_refused(plan_toy: PlanToy, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan_toy(**changes)


def test_a_target_out_of_reach_is_refused(plan_toy: PlanToy) -> None:
    with pytest.raises((BudgetExceededError, ConfigError)):
        plan_toy(target_epsilon=1e-9)


def test_a_plan_whose_noise_is_too_small_is_never_handed_out(
    plan_toy: PlanToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = plan_toy().noise_multiplier
    monkeypatch.setattr(planning, "calibrate_noise", lambda *_: enough)
    assert plan_toy().noise_multiplier == enough
    monkeypatch.setattr(planning, "calibrate_noise", lambda *_: 0.99 * enough)
    with pytest.raises(PrivacyError):
        plan_toy()


def test_without_privacy_there_is_no_noise_and_nothing_to_price(plan_toy: PlanToy) -> None:
    plan = plan_toy(unit="none")
    assert (plan.event, plan.share_variance, plan.noise_multiplier) == (None, 0.0, 0.0)
    assert not plan.protected
    assert plan.noise_norm(6) == 0.0
    assert plan.to_json()["privacy"]["unit"] == "none"
    with pytest.raises(ConfigError):
        plan_toy(unit="none").skellam_event()


def test_the_divisor_scales_with_the_survivors(plan_toy: PlanToy) -> None:
    plan = plan_toy(6, sample_rate=0.5)
    assert plan.expected_batch(6) == pytest.approx(90.0)
    assert plan.expected_batch(4) == pytest.approx(60.0)


def test_the_hash_covers_privacy_encoding_and_threshold(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    encoding = dataclasses.replace(plan.encoding, scale=plan.encoding.scale * 2)
    privacy = dataclasses.replace(plan.privacy, public_records=181)
    others = [
        dataclasses.replace(plan, encoding=encoding),
        dataclasses.replace(plan, privacy=privacy),
        dataclasses.replace(plan, threshold=6),
    ]
    assert len({plan.hash(), *(other.hash() for other in others)}) == 4
    assert plan.hash() == plan_toy().hash()
    assert len(plan.hash()) == 32


def turn(agreed: Agreement) -> bytes:
    return rotation_key(agreed.plan_hash, agreed.base_hash, agreed.model_hash, agreed.round)


def test_a_round_is_bound_to_plan_model_base_roster_and_number(plan_toy: PlanToy) -> None:
    plan, cohort = plan_toy(), Cohort(b"run", ROSTER, bytes(32))
    base = cohort.round_parameters(plan, 1, bytes(32))
    others = [
        cohort.round_parameters(plan, 2, bytes(32)),
        cohort.round_parameters(plan, 1, b"\x01" * 32),
        cohort.round_parameters(plan_toy(clipping_norm=2.0), 1, bytes(32)),
        dataclasses.replace(cohort, base_hash=b"\x01" * 32).round_parameters(plan, 1, bytes(32)),
        dataclasses.replace(cohort, run=b"other").round_parameters(plan, 1, bytes(32)),
        dataclasses.replace(cohort, roster=ROSTER[::-1]).round_parameters(plan, 1, bytes(32)),
    ]
    assert len({p.context() for p in (base, *others)}) == 7
    # Who takes part does not change the rotation: every engine rotates the same run alike.
    assert len({turn(p) for p in (base, *others[:4])}) == 5
    assert {turn(p) for p in others[4:]} == {turn(base)}
    assert base.dimension == plan.encoding.padded
    with pytest.raises(ConfigError, match="roster"):
        dataclasses.replace(cohort, roster=ROSTER[:4]).round_parameters(plan, 1, bytes(32))
