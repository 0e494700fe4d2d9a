"""Several accounts together: each figure under its conditions, and never below the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import binom

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.accounting.composition import (
    conditions,
    over_disjoint_clients,
    over_shared_persons,
    with_survivors,
)


def test_disjoint_clients_cost_the_largest() -> None:
    found = over_disjoint_clients([1.0, 3.0, 2.0], 1e-5)
    assert (found.epsilon, found.delta) == (3.0, 1e-5)
    assert "no unit is at two clients" in " ".join(found.conditions)
    assert over_disjoint_clients([1.0, math.inf], 1e-5).epsilon == math.inf


def exact_at_clients(variance: float, shift: int, rate: float, clients: int, steps: int, delta: float) -> float:
    """Compose the exact law of one integer to which each of n clients may add the shift."""
    reach = int(9 * math.sqrt(variance)) + clients * shift
    places = np.arange(-reach, reach + 1)
    out = ive(np.abs(places).astype(float), variance)
    weights = binom.pmf(np.arange(clients + 1), clients, rate)
    put = np.sum([w * ive(np.abs(places - k * shift).astype(float), variance) for k, w in enumerate(weights)], axis=0)
    composed = pld.from_two_probability_mass_functions(
        dict(enumerate(np.log(out))),
        dict(enumerate(np.log(put))),
        pessimistic_estimate=False,
        value_discretization_interval=1e-4,
    ).self_compose(steps)
    return float(composed.get_epsilon_for_delta(delta))


@pytest.mark.parametrize("clients", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("rate", "shift", "root", "steps"), [(1.0, 20, 40, 1), (0.3, 30, 40, 4), (0.1, 30, 30, 10), (0.02, 60, 50, 30)]
)
def test_a_person_at_several_clients_is_never_priced_below_the_truth(
    clients: int, rate: float, shift: int, root: int, steps: int
) -> None:
    delta = 1e-5
    event = SampledSkellam(rate, float(shift), float(shift), float(root**2), steps, 0.0, 1)
    truth = exact_at_clients(float(root**2), shift, rate, clients, steps, delta)
    found = over_shared_persons([event], clients, delta)
    assert truth <= found.epsilon
    assert found.epsilon <= 1.3 * truth + 0.1  # given up for the Gaussian inside so little noise
    assert found.delta == delta


@given(
    ends=st.tuples(*[st.tuples(st.integers(-9, 9), st.integers(-9, 9))] * 2), rate=st.sampled_from([0.05, 0.3, 0.9])
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_contributions_in_any_direction_are_within_the_mixture(
    ends: tuple[tuple[int, int], tuple[int, int]], rate: float
) -> None:
    """Two clients add any vectors to two integers: exact law, one sum, both directions."""
    variance, delta = 400.0, 1e-4
    places = np.arange(-140, 141)

    def law(shift: tuple[int, int]) -> np.ndarray[Any, Any]:
        one, two = (ive(np.abs(places - part).astype(float), variance) for part in shift)
        return np.outer(one, two)

    both = (ends[0][0] + ends[1][0], ends[0][1] + ends[1][1])
    out = law((0, 0))
    put = (1 - rate) ** 2 * out + rate * (1 - rate) * (law(ends[0]) + law(ends[1]))
    put += rate**2 * law(both)
    event = SampledSkellam(rate, 18.0, math.hypot(9, 9), variance, 1, 0.0, 2)
    priced = over_shared_persons([event], 2, delta).epsilon
    for p, q in ((out, put), (put, out)):
        assert np.maximum(p - math.exp(priced) * q, 0.0).sum() <= delta


def test_a_default_plan_at_two_and_three_clients() -> None:
    """The coarser bound said 52 and 148, the sum of the clients' epsilons says 16 and 24."""
    event = SampledSkellam(0.1, 1e5, 520.0, (0.6865 * 520.0) ** 2, 20, 2e-12, 65536)
    prices = [over_shared_persons([event], n, 1e-5).epsilon for n in (1, 2, 3)]
    assert prices == pytest.approx([8.0, 17.5, 28.0], rel=0.01)


def test_many_clients_fall_back_to_the_coarser_bound_and_never_below() -> None:
    event = SampledSkellam(0.1, 1e5, 520.0, (0.6865 * 520.0) ** 2, 20, 2e-12, 65536)
    prices = [over_shared_persons([event], n, 1e-5).epsilon for n in (8, 40)]
    assert 80.0 < prices[0] < 100.0 < prices[1] < math.inf
    unknown = SampledSkellam(0.1, 1e5, 520.0, (0.6865 * 520.0) ** 2, 20)
    assert over_shared_persons([unknown], 2, 1e-5).epsilon > 50.0


def test_the_sum_of_epsilons_is_below_the_truth_under_one_noise() -> None:
    """Three clients, no sampling: group privacy, which a sum of epsilon and delta misses."""
    alone = epsilon([SampledSkellam(1.0, 30.0, 30.0, 900.0, 1, 0.0, 1)], 1e-5)
    assert exact_at_clients(900.0, 30, 1.0, 3, 1, 3e-5) > 1.1 * 3 * alone


def test_noise_of_each_client_composes_to_the_sum() -> None:
    event = SampledGaussian(0.1, 1.5, 20)
    found = over_shared_persons([event], 3, 1e-5)
    assert found.epsilon == pytest.approx(3 * epsilon([event], 1e-5))
    assert found.delta == pytest.approx(3e-5)
    # a person in the independent samples of all three meets three times the rounds
    assert epsilon([event.times(60)], found.delta) <= found.epsilon


def test_shared_persons_need_clients_and_one_kind_of_noise() -> None:
    mixed = [SampledGaussian(0.1, 1.5), SampledSkellam(0.1, 9.0, 3.0, 90.0)]
    for events, clients in ((mixed, 2), (mixed[:1], 0)):
        with pytest.raises(ConfigError):
            over_shared_persons(events, clients, 1e-5)


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
    with pytest.raises(ConfigError):
        over_disjoint_clients(wrong, 1e-5)


def test_the_conditions_are_printed_for_every_unit() -> None:
    assert any("one noise" in text for text in conditions("record"))
    assert not any("one noise" in text for text in conditions("client"))
