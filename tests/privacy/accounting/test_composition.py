"""Several accounts together: each figure under its conditions, and never below the truth."""

from __future__ import annotations

import math

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.accounting.composition import (
    conditions,
    over_disjoint_clients,
    over_runs,
    over_shared_persons,
    with_survivors,
)


def test_disjoint_clients_cost_the_dearest() -> None:
    found = over_disjoint_clients([1.0, 3.0, 2.0], 1e-5)
    assert (found.epsilon, found.delta) == (3.0, 1e-5)
    assert "no unit is at two clients" in " ".join(found.conditions)
    assert over_disjoint_clients([1.0, math.inf], 1e-5).epsilon == math.inf


def test_shared_persons_cost_the_sum_which_is_above_the_joint_account() -> None:
    event = SampledGaussian(0.1, 1.5, 20)
    alone = epsilon([event], 1e-5)
    found = over_shared_persons([alone, alone, alone], 1e-5)
    assert found.epsilon == pytest.approx(3 * alone)
    assert found.delta == pytest.approx(3e-5)
    assert "add up" in " ".join(found.conditions)
    # a person in the independent samples of all three meets three times the rounds
    assert epsilon([event.times(60)], found.delta) <= found.epsilon
    assert over_disjoint_clients([alone] * 3, 1e-5).epsilon < epsilon([event.times(60)], 3e-5)


def test_runs_in_one_account_cost_less_than_their_sum_and_more_than_each() -> None:
    one, two = SampledGaussian(0.1, 1.2, 20), SampledGaussian(0.2, 2.0, 30)
    found = over_runs([[one], [two]], 1e-5)
    apart = [epsilon([one], 1e-5), epsilon([two], 1e-5)]
    assert max(apart) < found.epsilon < sum(apart)
    assert over_runs([], 1e-5).epsilon == 0.0


def test_heterogeneous_rounds_are_one_account() -> None:
    kinds = [SampledGaussian(0.1, 1.0 + i / 10, 5) for i in range(3)]
    price = epsilon(kinds, 1e-5)
    assert epsilon([SampledGaussian(0.1, 1.2, 15)], 1e-5) < price
    assert price < epsilon([SampledGaussian(0.1, 1.0, 15)], 1e-5)


def test_fewer_honest_clients_leave_less_noise() -> None:
    event = SampledSkellam(0.1, 5e4, 500.0, (1.0 * 500.0) ** 2, 10, 1e-12, 8192)
    prices = [epsilon([with_survivors(event, 5, n)], 1e-5) for n in (6, 5, 4, 1)]
    assert prices == sorted(prices)
    assert prices[1] == epsilon([event], 1e-5)
    assert with_survivors(event, 5, 4).variance == pytest.approx(0.8 * event.variance)
    own = SampledGaussian(0.1, 1.0)
    assert with_survivors(own, 5, 1) == own
    with pytest.raises(ConfigError, match="no epsilon holds"):
        with_survivors(event, 5, 0)


@pytest.mark.parametrize("wrong", [[], [-1.0], [math.nan]])
def test_accounts_that_are_none(wrong: list[float]) -> None:
    for combine in (over_disjoint_clients, over_shared_persons):
        with pytest.raises(ConfigError):
            combine(wrong, 1e-5)


def test_the_conditions_are_printed_for_every_unit() -> None:
    assert any("sum" in text for text in conditions("record"))
    assert not any("(sum)" in text for text in conditions("client"))
