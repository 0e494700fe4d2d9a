"""Solving for each of the four quantities, and refusing what has no answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.special import ndtr

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy import SampledGaussian, SampledSkellam, epsilon
from carefl_secure.privacy.accounting import budget as module
from carefl_secure.privacy.accounting.accountant import epsilon_by_delta
from carefl_secure.privacy.accounting.budget import MAX_ROUNDS, BudgetQuestion, epsilon_by_rounds, solve_budget
from carefl_secure.privacy.accounting.budget_request import EMBEDDED_DIMENSION, nominal_norm
from carefl_secure.privacy.accounting.gaussian_losses import opacus_prv_epsilon
from carefl_secure.privacy.banded import coefficients
from carefl_secure.secagg import plan_records
from tests.support.federation import known_plan


def ask(mechanism: Any = "skellam", delta: float = 1e-5, **known: Any) -> BudgetQuestion:
    return BudgetQuestion(mechanism=mechanism, delta=delta, **known)


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta", "gaussian", "skellam"),
    [
        (0.01, 1.0, 1000, 1e-5, 1.828, 1.838),
        (0.05, 0.8, 200, 1e-3, 5.146, 5.182),
        (0.1, 1.0, 30, 1e-5, 4.178, 4.197),
        (1.0, 4.0, 20, 1e-6, 5.551, 5.555),
    ],
)
def test_epsilon(rate: float, noise: float, rounds: int, delta: float, gaussian: float, skellam: float) -> None:
    for mechanism, truth in (("gaussian", gaussian), ("skellam", skellam)):
        found = solve_budget(ask(mechanism, delta, sample_rate=rate, noise_multiplier=noise, rounds=rounds))
        assert found.solved_for == "epsilon"
        assert truth - 1e-3 <= found.epsilon <= truth + 0.02
        assert found.epsilon >= gaussian - 1e-3
        assert found.accountant.startswith("PLD")
        assert found.adjacency == "add-or-remove-one"


def test_noise() -> None:
    found = solve_budget(ask(sample_rate=0.01, rounds=300, epsilon=8.0))
    assert found.noise_multiplier == pytest.approx(0.5166, abs=1e-3)  # 0.5139 with Gaussian noise
    assert 7.99 < found.epsilon <= 8.0
    assert found.verdict == "reasonable, not strong"


def test_noise_of_plain_gaussian_rounds_has_a_closed_form() -> None:
    found = solve_budget(ask("gaussian", sample_rate=1.0, rounds=20, epsilon=8.0))
    mu = math.sqrt(20.0) / found.noise_multiplier
    delta = ndtr(mu / 2.0 - 8.0 / mu) - math.exp(8.0) * ndtr(-mu / 2.0 - 8.0 / mu)
    assert 0.99e-5 < delta <= 1e-5
    assert 7.99 < found.epsilon <= 8.0


@pytest.mark.parametrize("target", [2.0, 8.0])
def test_rounds_are_the_most_that_fit(target: float) -> None:
    found = solve_budget(ask(sample_rate=0.02, noise_multiplier=0.9, epsilon=target))
    assert found.epsilon <= target
    more = ask(sample_rate=0.02, noise_multiplier=0.9, rounds=found.rounds + 1)
    assert solve_budget(more).epsilon > target


def test_gaussian_rounds_are_the_most_that_fit() -> None:
    found = solve_budget(ask("gaussian", sample_rate=1.0, noise_multiplier=9.0, epsilon=4.0))
    after = epsilon([SampledGaussian(1.0, 9.0, found.rounds + 1)], 1e-5)
    assert found.epsilon <= 4.0 < after


@pytest.mark.parametrize("target", [0.8, 8.0])
def test_sample_rate_is_the_highest_of_four_digits_that_fits(target: float) -> None:
    found = solve_budget(ask(noise_multiplier=0.8, rounds=100, epsilon=target))
    assert found.epsilon <= target
    unit = 10.0 ** (math.floor(math.log10(found.sample_rate)) - 3)
    assert found.sample_rate == float(f"{found.sample_rate:.4g}")
    higher = ask(noise_multiplier=0.8, rounds=100, sample_rate=found.sample_rate + unit)
    assert solve_budget(higher).epsilon > target


def test_gaussian_sample_rate() -> None:
    found = solve_budget(ask("gaussian", noise_multiplier=1.0, rounds=30, epsilon=4.178))
    assert found.sample_rate == pytest.approx(0.1, abs=1e-4)
    assert found.epsilon <= 4.178


def test_a_rate_of_one_needs_no_search() -> None:
    found = solve_budget(ask(noise_multiplier=50.0, rounds=1, epsilon=8.0))
    assert found.sample_rate == 1.0


@pytest.mark.parametrize("dimension", [1, 3, 60, 1000, 40_960, 1_000_000])
@pytest.mark.parametrize(("clients", "noise"), [(3, 4.0), (8, 0.9), (100, 0.4)])
def test_the_nominal_encoding_is_no_finer_than_the_planned_one(dimension: int, clients: int, noise: float) -> None:
    """A real run has longer integer vectors, so the price found here is at or above its price."""
    code = plan_records(dimension, 1.0, noise, 40.0, clients, max(1, clients // 2))
    nominal = nominal_norm(dimension)
    assert nominal <= code.l2_sensitivity
    if clients < 100:
        assert nominal > 0.9 * code.l2_sensitivity or dimension < 13


def test_the_price_is_at_or_above_that_of_a_planned_run() -> None:
    known = {"sample_rate": 0.1, "noise_multiplier": 0.7, "rounds": 12}
    for dimension in (60, 40_960):
        found = solve_budget(ask(dimension=dimension, **known))
        code = plan_records(dimension, 1.0, 0.7, 40.0, 8, 5)
        real = SampledSkellam(
            0.1, code.l1_sensitivity, code.l2_sensitivity, code.share_variance() * 5, 12, 1.9e-12, code.padded
        )
        assert 0.995 * found.epsilon < epsilon([real], 1e-5) <= found.epsilon + 1e-9


def test_the_default_dimension_is_that_of_the_embedded_model() -> None:
    from carefl_secure.config import load_config
    from carefl_secure.model.loader import load_base
    from carefl_secure.model.lora import Adapter

    config = load_config(None, [])
    adapter = Adapter(
        load_base("embedded"),
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=config.adapter.targets,
        train=config.adapter.train,
        seed=0,
        last_layers=config.adapter.last_layers,
    )
    assert adapter.dimension == EMBEDDED_DIMENSION
    assert ask(sample_rate=0.1, rounds=2, epsilon=1.0).dimension == EMBEDDED_DIMENSION


def test_a_person_with_k_records() -> None:
    known = {"noise_multiplier": 1.0, "rounds": 30, "unit": "person"}
    found = solve_budget(ask("gaussian", sample_rate=0.02, records_per_person=5, **known))
    rate = 1.0 - (1.0 - 0.02) ** 5
    assert found.epsilon == pytest.approx(epsilon([SampledGaussian(rate, 1.0, 30)], 1e-5), abs=1e-6)
    assert found.sample_rate == 0.02
    assert any("at most 5 records" in text for text in found.assumptions())
    once = solve_budget(ask("gaussian", sample_rate=0.02, **known))
    assert once.epsilon < found.epsilon
    # joint convexity is not tight: the exact mixture of k draws costs less, and never more
    exact = _mixture(0.02, 1.0, 5, 30)
    assert exact <= found.epsilon
    with pytest.raises(ConfigError, match="unit person"):
        ask(sample_rate=0.1, rounds=2, epsilon=1.0, records_per_person=3)


def _mixture(rate: float, noise: float, k: int, rounds: int) -> float:
    """Price k records that each move the sum by 1/k of the person's norm, drawn one by one."""
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import binom

    shifts = [i / k for i in range(k + 1)]
    chances = [float(binom.pmf(i, k, rate)) for i in range(k + 1)]
    found = pld.from_mixture_gaussian_mechanism(
        noise, shifts, chances, value_discretization_interval=1e-3
    ).self_compose(rounds)
    return float(found.get_epsilon_for_delta(1e-5))


def test_the_dimension_belongs_to_skellam_noise() -> None:
    with pytest.raises(ConfigError, match="does not depend on the dimension"):
        ask("gaussian", sample_rate=0.1, rounds=2, epsilon=1.0, dimension=5)
    for wrong in (0, 2**31):
        with pytest.raises(ConfigError, match="the dimension is"):
            ask(sample_rate=0.1, rounds=2, epsilon=1.0, dimension=wrong)


def test_all_four_given_and_kept() -> None:
    found = solve_budget(ask(sample_rate=0.01, noise_multiplier=1.0, rounds=1000, epsilon=2.2))
    assert found.solved_for == "nothing"
    assert found.epsilon == pytest.approx(1.840, abs=1e-3)


def test_all_four_given_and_broken() -> None:
    with pytest.raises(BudgetExceededError, match=r"cost epsilon 1\.84.*leave one"):
        solve_budget(ask(sample_rate=0.01, noise_multiplier=1.0, rounds=1000, epsilon=1.8))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, "epsilon and the noise multiplier and"),
        ({"epsilon": 8.0}, "the noise multiplier and the number of rounds and the sample rate"),
        ({"epsilon": 8.0, "rounds": 5}, "the noise multiplier and the sample rate are left out"),
        ({"sample_rate": 0.1, "rounds": 5}, "leave out exactly one"),
    ],
)
def test_too_much_left_out(known: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ask(**known)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"sample_rate": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"rounds": 0},
        {"rounds": MAX_ROUNDS + 1},
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"delta": 0.5},
        {"delta": 1e-12},
    ],
)
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    known = {"sample_rate": 0.1, "noise_multiplier": 1.0, "rounds": 10, **wrong}
    with pytest.raises(ConfigError):
        ask(**known)


@pytest.mark.parametrize(
    "known",
    [
        {"sample_rate": 1.0, "noise_multiplier": 0.5, "epsilon": 1.0},  # one round is too dear
        {"noise_multiplier": 0.05, "rounds": 100_000, "epsilon": 0.1},  # at any rate
    ],
)
def test_targets_out_of_reach(known: dict[str, Any]) -> None:
    for mechanism in ("skellam", "gaussian"):
        with pytest.raises(BudgetExceededError, match="choose"):
            solve_budget(ask(mechanism, **known))


def test_more_rounds_than_anyone_asks_for() -> None:
    with pytest.raises(ConfigError, match="less noise"):
        solve_budget(ask(sample_rate=1e-4, noise_multiplier=20.0, epsilon=8.0))


def test_the_client_unit_knows_no_sampling() -> None:
    found = solve_budget(ask(unit="client", noise_multiplier=8.0, rounds=10))
    assert (found.sample_rate, found.unit) == (1.0, "client")
    assert any("no sampling" in text for text in found.assumptions())
    with pytest.raises(ConfigError, match="set the sample rate to 1"):
        ask(unit="client", noise_multiplier=8.0, rounds=10, sample_rate=0.5)
    with pytest.raises(ConfigError, match="leave out exactly one"):
        ask(unit="client", noise_multiplier=8.0)


def test_the_assumptions_name_all_that_epsilon_rests_on() -> None:
    found = solve_budget(ask(sample_rate=0.1, noise_multiplier=1.0, rounds=7))
    text = "\n".join(found.assumptions())
    for word in ("unit", "add or remove one", "Poisson", "never learns", "PLD", "40960", "7 sums"):
        assert word in text


@pytest.mark.parametrize("rounds", [1, 5, 30])
def test_epsilon_by_rounds(rounds: int) -> None:
    found = solve_budget(ask(sample_rate=0.1, noise_multiplier=1.0, rounds=rounds))
    points = epsilon_by_rounds(found, 12)
    assert (rounds, found.epsilon) in points
    assert [count for count, _ in points] == sorted({count for count, _ in points})
    assert points[-1][0] == 2 * rounds
    prices = [price for _, price in points]
    assert prices == sorted(prices)
    assert len(points) <= 12


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta", "truth"),
    [
        (0.01, 1.0, 1000, 1e-5, 1.8282),
        (256 / 60000, 1.1, 14062, 1e-5, 2.3817),
        (0.05, 2.0, 500, 1e-5, 2.5320),
        (1.0, 4.0, 20, 1e-6, 5.5509),
        (0.001, 0.6, 10000, 1e-6, 3.1522),
        (0.05, 0.8, 200, 1e-3, 5.1459),
        (0.1, 1.0, 30, 1e-5, 4.1782),
    ],
)
def test_opacus_agrees(rate: float, noise: float, rounds: int, delta: float, truth: float) -> None:
    """The cross-check that is printed lies within 0.02 of every row of the truth table."""
    found = opacus_prv_epsilon(rate, noise, rounds, delta)
    assert found is not None
    assert truth - 1e-3 <= found <= truth + 0.02


def test_opacus_gives_up_in_words_only() -> None:
    assert opacus_prv_epsilon(1.0, 0.02, 1000, 1e-5) is None


def test_the_wrong_sided_accountant_is_nowhere() -> None:
    from pathlib import Path

    for name in ("budget.py", "gaussian_losses.py"):
        source = Path(module.__file__).with_name(name).read_text(encoding="utf-8")
        assert "GDPAccountant" not in source
        assert "create_accountant" not in source


@pytest.mark.parametrize(
    ("clients", "bands", "rate", "momentum"), [(8, 5, 0.2, 0.8), (30, 2, 0.2, 0.0), (8, 10, 0.05, 0.9)]
)
def test_a_banded_run_needs_no_more_noise_than_its_budget(
    clients: int, bands: int, rate: float, momentum: float
) -> None:
    found = solve_budget(ask(sample_rate=rate, rounds=20, epsilon=8.0, bands=bands))
    plain = ask("gaussian", sample_rate=bands * rate, rounds=20 // bands, noise_multiplier=found.noise_multiplier)
    assert 7.9 < solve_budget(plain).epsilon <= found.epsilon <= 8.0
    assert (found.rounds, found.sample_rate, found.bands) == (20, rate, bands)
    correlation = coefficients(bands, 20, momentum)
    plan = known_plan(
        clients, EMBEDDED_DIMENSION, public_records=8000, rounds=20, sample_rate=rate, correlation=correlation
    )
    assert plan.privacy.noise_multiplier <= found.noise_multiplier * 1.0001  # the search ends within 0.01 %


def test_rounds_and_rate_under_bands() -> None:
    most = solve_budget(ask(sample_rate=0.2, noise_multiplier=1.21, epsilon=8.0, bands=5))
    assert most.rounds == 20  # four rounds of a record's own, each in one of five
    same = [solve_budget(ask(sample_rate=0.2, noise_multiplier=1.21, rounds=n, bands=5)).epsilon for n in (16, 21)]
    assert same[0] == most.epsilon < 8.0 < same[1]  # 16 rounds hold four of some record's too, 21 five
    rate = solve_budget(ask(noise_multiplier=1.0, rounds=20, epsilon=8.0, bands=5))
    assert rate.epsilon <= 8.0
    assert rate.sample_rate < 0.2
    assert (
        solve_budget(ask(noise_multiplier=1.0, rounds=20, sample_rate=rate.sample_rate + 1e-4, bands=5)).epsilon > 8.0
    )
    assert solve_budget(ask(noise_multiplier=9.0, rounds=20, epsilon=8.0, bands=5)).sample_rate == 0.2
    prices = epsilon_by_rounds(most, 8)
    assert dict(prices)[20] == most.epsilon
    assert "drawn by its client alone" in " ".join(most.assumptions())
    assert "4 can hold one record" in " ".join(most.assumptions())


@pytest.mark.parametrize(
    "known",
    [
        {"bands": 5, "sample_rate": 0.3, "rounds": 20},
        {"bands": 21, "sample_rate": 0.01, "rounds": 20},
        {"bands": 0, "sample_rate": 0.01, "rounds": 20},
        {"bands": 2, "sample_rate": 0.1, "rounds": 20, "unit": "person"},
        {"bands": 2, "sample_rate": 0.1, "rounds": 20, "mechanism": "gaussian"},
    ],
)
def test_bands_that_fit_nothing_are_refused(known: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="band"):
        ask(epsilon=8.0, **known)


def test_epsilon_at_other_deltas() -> None:
    found = solve_budget(ask("gaussian", sample_rate=0.2, noise_multiplier=1.2, rounds=20))
    assert [delta for delta, _ in found.by_delta] == [1e-4, 1e-6, 1e-7]
    event = SampledGaussian(0.2, 1.2, 20)
    for delta, value in found.by_delta:
        assert epsilon([event], delta) <= value <= 1.01 * epsilon([event], delta)
    many = SampledSkellam(0.2, 1e4, 1e3, 1e7, 20, beta=1e-9, dimension=1000)
    assert [delta for delta, _ in epsilon_by_delta([many], 1e-5)] == [1e-4, 1e-6, 1e-7]
    assert [delta for delta, _ in epsilon_by_delta([many.times(200)], 1e-5)] == [
        1e-4,
        1e-6,
    ]  # roundings fail too often
    assert [delta for delta, _ in epsilon_by_delta([event], 1e-2)] == [1e-3, 1e-4]
