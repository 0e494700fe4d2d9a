"""Plans: only those that can keep a promise exist."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import PrivacyPlan, SampledGaussian, SampledSkellam

RECORD = PrivacyPlan(
    unit="record",
    trust="secagg",
    mechanism="skellam",
    rounds=40,
    clients=10,
    min_survivors=7,
    max_colluders=2,
    public_records=2000,
    delta=1e-5,
    sample_rate=0.05,
    clipping_norm=1.0,
    noise_multiplier=0.8,
    target_epsilon=8.0,
)
LOCAL = dataclasses.replace(
    RECORD, trust="none", mechanism="gaussian", min_survivors=1, max_colluders=0, local_steps=5
)
PERSON = dataclasses.replace(RECORD, unit="person")
KEPT = dataclasses.replace(PERSON, records_per_person=3)
CLIENT = dataclasses.replace(RECORD, unit="client", sample_rate=1.0)
NOTHING = dataclasses.replace(RECORD, unit="none", mechanism="none", noise_multiplier=0.0, target_epsilon=None)


def test_derived_numbers() -> None:
    assert RECORD.noise_clients == 5
    assert RECORD.expected_batch == 100.0


@pytest.mark.parametrize(
    ("base", "change", "says"),
    [
        (RECORD, {"target_epsilon": 0.0}, "target_epsilon"),
        (RECORD, {"target_epsilon": -8.0}, "target_epsilon"),
        (RECORD, {"target_epsilon": math.nan}, "target_epsilon"),
        (RECORD, {"sample_rate": 0.0}, "sample_rate"),
        (RECORD, {"sample_rate": 1.01}, "sample_rate"),
        (RECORD, {"sample_rate": math.nan}, "sample_rate"),
        (RECORD, {"sample_rate": True}, "sample_rate"),
        (RECORD, {"delta": 0.0}, "delta"),
        (RECORD, {"delta": 0.5}, "delta"),
        (RECORD, {"delta": 1e-3}, "1 / public_records"),
        (RECORD, {"clipping_norm": 0.0}, "clipping_norm"),
        (RECORD, {"clipping_norm": math.inf}, "clipping_norm"),
        (RECORD, {"noise_multiplier": 0.0}, "protects nothing"),
        (RECORD, {"noise_multiplier": -1.0}, "noise_multiplier"),
        (RECORD, {"noise_multiplier": "1"}, "noise_multiplier"),
        (RECORD, {"rounds": 0}, "rounds"),
        (RECORD, {"rounds": 2.5}, "rounds"),
        (RECORD, {"clients": True}, "clients"),
        (RECORD, {"public_records": 0}, "public_records"),
        (RECORD, {"max_colluders": -1}, "max_colluders"),
        (RECORD, {"max_colluders": 7}, "raise min_survivors"),
        (RECORD, {"min_survivors": 11}, "more clients"),
        (RECORD, {"min_survivors": 2, "max_colluders": 0}, "at least 3"),
        (RECORD, {"mechanism": "gaussian"}, "needs mechanism 'skellam'"),
        (RECORD, {"trust": "none"}, "needs mechanism 'gaussian'"),
        (RECORD, {"trust": "server"}, "trust"),
        (RECORD, {"unit": "patient"}, "unit"),
        (RECORD, {"records_per_person": 2}, "set unit to 'person'"),
        (PERSON, {"records_per_person": 0}, "records_per_person"),
        (PERSON, {"records_per_person": True}, "records_per_person"),
        (PERSON, {"delta": 1e-3}, "1 / public_records"),
        (PERSON, {"local_steps": 2}, "local_steps"),
        (PERSON, {"trust": "none", "mechanism": "gaussian"}, "needs trust 'secagg'"),
        (RECORD, {"unit": "none"}, "needs mechanism 'none'"),
        (RECORD, {"adjacency": "replace-one"}, "adjacency"),
        (RECORD, {"local_steps": 2}, "local_steps"),
        (RECORD, {"normalise": 1}, "normalise"),
        (CLIENT, {"sample_rate": 0.5}, "gains nothing"),
        (CLIENT, {"trust": "none", "mechanism": "gaussian"}, "needs trust 'secagg'"),
        (NOTHING, {"noise_multiplier": 1.0}, "protects nothing"),
        (NOTHING, {"target_epsilon": 8.0}, "protects nothing"),
    ],
)
def test_contradictions_are_refused(base: PrivacyPlan, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(base, **change)


def test_plans_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.noise_multiplier = 0.1  # type: ignore[misc]


def test_the_hash_is_stable_and_covers_every_field() -> None:
    assert len(RECORD.hash()) == 32
    assert RECORD.hash() == dataclasses.replace(RECORD).hash()
    whole = dataclasses.replace(RECORD, sample_rate=1)
    assert whole.hash() == dataclasses.replace(RECORD, sample_rate=1.0).hash()
    changes: dict[str, Any] = {
        "rounds": 41,
        "clients": 11,
        "min_survivors": 8,
        "max_colluders": 1,
        "public_records": 2001,
        "delta": 2e-5,
        "sample_rate": 0.06,
        "clipping_norm": 1.1,
        "noise_multiplier": 0.81,
        "target_epsilon": None,
        "normalise": False,
    }
    others = [dataclasses.replace(RECORD, **{name: value}) for name, value in changes.items()]
    steps = dataclasses.replace(LOCAL, local_steps=6)
    kept = dataclasses.replace(KEPT, records_per_person=4)
    banded = dataclasses.replace(RECORD, correlation=(4, 3))
    followed = dataclasses.replace(RECORD, normalise=False, target_unclipped_quantile=0.5)
    plans = [RECORD, *others, LOCAL, steps, CLIENT, NOTHING, PERSON, KEPT, kept, banded, followed]
    assert len({plan.hash() for plan in plans}) == len(plans)
    tried = set(changes) | {"local_steps", "unit", "trust", "mechanism", "records_per_person", "correlation"}
    tried.add("target_unclipped_quantile")
    one_value = {"adjacency"}
    assert tried | one_value == {field.name for field in dataclasses.fields(PrivacyPlan)}


def test_the_hash_can_be_made_by_hand() -> None:
    text = (
        '{"adjacency":"add-or-remove-one","clients":10,"clipping_norm":1.0,"delta":1e-05,'
        '"format":"carefl.plan/1","local_steps":1,"max_colluders":2,"mechanism":"skellam",'
        '"min_survivors":7,"noise_multiplier":0.8,"normalise":true,"public_records":2000,'
        '"rounds":40,"sample_rate":0.05,"target_epsilon":8.0,"trust":"secagg","unit":"record"}'
    )
    assert RECORD.to_json() == json.loads(text)
    assert RECORD.hash() == hashlib.sha256(text.encode()).digest()
    assert KEPT.to_json() == {**json.loads(text), "unit": "person", "records_per_person": 3}
    assert PrivacyPlan(**{k: v for k, v in KEPT.to_json().items() if k != "format"}) == KEPT


def test_only_the_noise_of_honest_survivors_is_counted() -> None:
    l2, l1 = 3749.0, 3.8e6
    share = (0.8 * l2) ** 2 / 5
    event = RECORD.skellam_event(l1=l1, l2=l2, share_variance=share, beta=1e-12, rounds=40)
    assert isinstance(event, SampledSkellam)
    assert event.variance == pytest.approx((0.8 * l2) ** 2)
    assert (event.sample_rate, event.l1, event.l2, event.count) == (0.05, l1, l2, 40)
    assert event.beta == 1e-12


def test_shares_sized_for_all_clients_are_refused() -> None:
    l2 = 3749.0
    with pytest.raises(ConfigError, match="is below"):
        RECORD.skellam_event(l1=3.8e6, l2=l2, share_variance=(0.8 * l2) ** 2 / 10, beta=1e-12)


def test_local_steps_are_counted() -> None:
    assert LOCAL.gaussian_event(3) == SampledGaussian(0.05, 0.8, 15)


def test_events_of_the_wrong_mechanism_are_refused() -> None:
    with pytest.raises(ConfigError, match="mechanism"):
        RECORD.gaussian_event()
    for plan in (LOCAL, NOTHING):
        with pytest.raises(ConfigError, match="mechanism"):
            plan.skellam_event(l1=4.0, l2=2.0, share_variance=1.0, beta=0.0)


def test_the_promise_is_that_of_the_plan() -> None:
    text = RECORD.promise(7.9)
    assert "record" in text
    assert "2 colluding clients" in text
    assert "1e-05" in text
    assert "Nothing is protected" in NOTHING.promise(0.0)


def test_a_persons_records_count_together() -> None:
    assert (PERSON.event_rate, PERSON.sensitivity, PERSON.expected_batch) == (0.05, 1.0, 100.0)
    assert KEPT.event_rate == pytest.approx(1 - 0.95**3, rel=1e-9)
    assert KEPT.event_rate >= 1 - 0.95**3
    assert KEPT.sensitivity == 3.0
    event = KEPT.skellam_event(l1=9.0, l2=3.0, share_variance=(0.8 * 3) ** 2 / 5, beta=0.0)
    assert event.sample_rate == KEPT.event_rate
    assert dataclasses.replace(KEPT, sample_rate=1.0).event_rate == 1.0
    assert "any one person" in PERSON.promise(8.0)
    assert "at most 3 records" in KEPT.promise(8.0)
    assert "doubles" in LOCAL.promise(8.0)


def _divergence(first: Any, second: Any, epsilon: float) -> float:
    """Hockey-stick divergence of two laws on the same integers."""
    return float(np.maximum(first - math.exp(epsilon) * second, 0.0).sum())


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("most", [2, 3, 4])
@pytest.mark.parametrize("law", ["skellam", "gauss"])
def test_k_records_are_covered_by_one_event_of_k_times_the_sensitivity(law: str, most: int, rate: float) -> None:
    """Brute force in one dimension, both directions, against the rate and shift of the account.

    The person's k records each shift by up to ``step``; all sign patterns and shorter shifts are
    tried. Cheaper accounts (one record's shift, or one record's rate) do not cover them.
    """
    step, grid = 4, np.arange(-400, 401)
    if law == "skellam":
        base = stats.skellam.pmf(grid, 20.0, 20.0)
    else:
        base = np.exp(-(grid**2) / (2 * 40.0))
        base /= base.sum()
    shifts = itertools.product((-step, -1, 0, step), repeat=most)
    plan = dataclasses.replace(KEPT, records_per_person=most, sample_rate=rate)

    def mixture(weights: dict[int, float]) -> Any:
        return sum(w * np.roll(base, shift) for shift, w in weights.items())

    covered = mixture({0: 1 - plan.event_rate, most * step: plan.event_rate})
    cheap = [mixture({0: 1 - rate, step: rate}), mixture({0: 1 - plan.event_rate, step: plan.event_rate})]
    beaten = [False] * len(cheap)
    for pattern in shifts:
        weights: dict[int, float] = {}
        for drawn in itertools.product((0, 1), repeat=most):
            chance = math.prod(rate if d else 1 - rate for d in drawn)
            total = sum(d * s for d, s in zip(drawn, pattern, strict=True))
            weights[total] = weights.get(total, 0.0) + chance
        with_person = mixture(weights)
        for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
            for way in (1, -1):
                found = _divergence(*(with_person, base)[::way], epsilon)
                assert found <= _divergence(*(covered, base)[::way], epsilon) + 1e-12
                for i, other in enumerate(cheap):
                    if found > _divergence(*(other, base)[::way], epsilon) + 1e-9:
                        beaten[i] = True
    assert all(beaten)
