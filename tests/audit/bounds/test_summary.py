"""Every bound on data whose truth is known: never above it, and never blind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carefl_secure.audit.bounds.clopper_pearson import (
    BOUNDS,
    attainable,
    clopper_pearson,
    clopper_pearson_gaussian,
    gaussian_estimate,
    lower_limit,
)
from carefl_secure.audit.bounds.one_run import (
    approximate_curve,
    contradicts,
    fdp_epsilon,
    gdp_delta,
    gdp_epsilon,
    steinke_epsilon,
)
from carefl_secure.errors import ConfigError

DELTA = 1e-5
RUNS = 200


def draw(seed: int, mu: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([4711, seed])
    member = rng.random(count) < 0.5
    return mu * member + rng.normal(size=count), member


def values(name: str, mu: float, count: int) -> np.ndarray:
    compute = BOUNDS[name].compute
    return np.array([compute(*draw(seed, mu, count), DELTA) for seed in range(RUNS)])


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("mu", [1.0, 2.0])
def test_on_a_gaussian_no_bound_passes_the_truth_in_92_of_100_runs(name: str, mu: float) -> None:
    found = values(name, mu, 400)
    assert np.mean(found > gdp_epsilon(mu, DELTA)) <= 0.08
    # a bound that always says nothing would have passed so far
    assert np.mean(found > 0) > 0.5 or mu < 2


@pytest.mark.parametrize("name", BOUNDS)
def test_on_the_null_at_most_8_of_100_are_false_alarms(name: str) -> None:
    assert np.mean(values(name, 0.0, 400) > 0) <= 0.08


@pytest.mark.parametrize("name", BOUNDS)
def test_a_broken_mechanism_is_seen(name: str) -> None:
    """Noise a quarter of what was claimed: the claim at sigma 1 falls to every bound."""
    found = [BOUNDS[name].compute(*draw(seed, 4.0, 1000), DELTA) for seed in range(10)]
    floor = 2.0 if name in ("steinke", "f-dp", "clopper-pearson") else gdp_epsilon(1.0, DELTA)
    assert min(found) > floor


@pytest.mark.parametrize(("name", "low", "high"), [("steinke", 1.0, 2.0), ("f-dp-gaussian", 1.9, 2.9)])
def test_medians_are_those_of_the_literature(name: str, low: float, high: float) -> None:
    compute = BOUNDS[name].compute
    found = [compute(*draw(seed, 1.0, 1000), DELTA) for seed in range(30)]
    assert low < float(np.median(found)) < high


def test_a_sampled_mechanism_is_not_over_accused() -> None:
    """Randomised response is (epsilon, 0)-DP: only bounds without assumptions are tried on it."""
    epsilon, names = 1.5, ("steinke", "f-dp", "clopper-pearson")
    chance = 1 / (1 + math.exp(-epsilon))
    above = dict.fromkeys(names, 0)
    for seed in range(RUNS):
        rng = np.random.default_rng([12, seed])
        member = rng.random(400) < 0.5
        stated = np.where(rng.random(400) < chance, member, ~member)
        scores = stated + 1e-3 * rng.random(400)
        for name in names:
            above[name] += BOUNDS[name].compute(scores, member, 0.0) > epsilon
    assert max(above.values()) <= 0.08 * RUNS


def test_a_true_claim_is_contradicted_rarely_and_a_false_one_often() -> None:
    curve = approximate_curve(gdp_epsilon(1.0, DELTA), DELTA)
    shares = (0.05, 0.125, 0.25)
    true = [contradicts(*draw(s, 1.0, 400), curve, shares=shares) for s in range(RUNS)]
    false = [contradicts(*draw(s, 8.0, 2000), curve, shares=shares) for s in range(20)]
    assert np.mean(true) <= 0.08 and all(false)


def test_the_attainable_bound_grows_with_the_canaries_and_is_never_passed() -> None:
    for name in ("steinke", "f-dp", "f-dp-gaussian", "clopper-pearson"):
        most = [attainable(name, count, DELTA) for count in (40, 200, 1000)]
        assert most == sorted(most) and most[0] > 0
        # one coin more or less on a side may move it a little, nothing else can
        found = [BOUNDS[name].compute(*draw(s, 9.0, 200), DELTA) for s in range(5)]
        assert 0.8 * most[1] < max(found) < 1.1 * most[1]
    assert attainable("gaussian-estimate", 100, DELTA) is None


def test_gaussian_prices_agree_with_themselves_and_a_known_value() -> None:
    assert gdp_epsilon(1.0, 1e-5) == pytest.approx(4.3767, abs=1e-3)
    assert gdp_delta(0.7, gdp_epsilon(0.7, 1e-6)) == pytest.approx(1e-6, rel=1e-5)
    assert gdp_epsilon(1e-9, 1e-5) == 0.0 == gdp_delta(0.0, 1.0)


def test_binomial_limits_cover() -> None:
    rng = np.random.default_rng(3)
    hits = rng.binomial(60, 0.1, size=2000)
    assert np.mean([clopper_pearson(int(k), 60, 0.05) < 0.1 for k in hits]) <= 0.05
    assert np.mean([lower_limit(int(k), 60, 0.05) > 0.1 for k in hits]) <= 0.05
    assert clopper_pearson(5, 5, 0.05) == 1.0 and lower_limit(0, 5, 0.05) == 0.0


def test_two_wide_limits_are_no_evidence() -> None:
    """The absolute value of the difference of two weak limits once read as epsilon 7."""
    found = [clopper_pearson_gaussian(*draw(seed, 0.0, 40), DELTA) for seed in range(RUNS)]
    assert np.mean(np.array(found) > 0) <= 0.08


def test_scores_without_spread_or_members_say_nothing() -> None:
    member = np.arange(10) % 2 == 0
    assert gaussian_estimate(np.zeros(10), member, DELTA) == 0.0
    assert gaussian_estimate(np.arange(10.0), np.zeros(10, bool), DELTA) == 0.0
    assert gaussian_estimate(-member.astype(float) + np.arange(10) * 0.1, member, DELTA) == 0.0


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="one score"):
        steinke_epsilon(np.zeros(3), np.zeros(4, bool), DELTA)
    with pytest.raises(ConfigError, match="share"):
        fdp_epsilon(np.zeros(4), np.zeros(4, bool), DELTA, share=0.6)
