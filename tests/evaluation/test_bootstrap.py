from __future__ import annotations

import math

import numpy as np
import pytest

from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.bootstrap import Statistic, bootstrap, difference, resamples, units_of
from carefl_secure.evaluation.figures import Ranking


def mean_of(values: np.ndarray) -> Statistic:
    def statistic(weights: np.ndarray | None) -> dict[str, float]:
        weight = np.ones(len(values)) if weights is None else weights
        return {"mean": float(weight @ values / weight.sum())}

    return statistic


def coverage(per_person: int, whole_persons: bool, trials: int = 150) -> float:
    """Share of 90 % intervals that hold the true mean 0, with equal records of each person."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(trials):
        values = np.repeat(rng.normal(size=40), per_person)
        persons = np.repeat(np.arange(40), per_person)
        units = persons if whole_persons else np.arange(len(values))
        found = bootstrap(mean_of(values), units, replicates=150, level=0.9, seed=trial)["mean"]
        held += found.low <= 0 <= found.high
    return held / trials


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # 150 trials at 0.9 have a standard deviation of 0.025; small samples cost a little.
    assert 0.8 < coverage(1, True) < 0.97
    assert 0.8 < coverage(4, True) < 0.97


def test_single_records_of_repeated_persons_would_not() -> None:
    assert coverage(4, False) < 0.7


def test_macro_average_precision_is_covered_in_spite_of_its_bias() -> None:
    """Percentile intervals hold the truth in fewer than two of three of these cases."""
    rng = np.random.default_rng(5)

    def draw(count: int) -> Ranking:
        truth = rng.random((count, 20)) < 0.12
        return Ranking(truth, rng.normal(size=truth.shape) + 1.2 * truth)

    def macro(ranking: Ranking) -> Statistic:
        return lambda weights: {"mAP": float(np.nanmean(ranking.average_precisions(weights)))}

    expected = macro(draw(40_000))(None)["mAP"]
    held = 0
    for seed in range(60):
        found = bootstrap(macro(draw(120)), np.arange(120), replicates=80, seed=seed)["mAP"]
        held += found.low <= expected <= found.high
    assert held > 48


def test_an_interval_by_hand_and_its_bounds() -> None:
    # Resampled figures are 0.9 or 1.1 in halves, the figure of all records is 0.96.
    states = iter([0.9, 1.1] * 50)

    def statistic(weights: np.ndarray | None) -> dict[str, float]:
        return {"x": 0.96 if weights is None else next(states)}

    found = bootstrap(statistic, np.arange(5), replicates=100)["x"]
    assert (found.low, found.high) == (pytest.approx(0.82), pytest.approx(1.02))
    states = iter([0.9, 1.1] * 50)
    found = bootstrap(statistic, np.arange(5), replicates=100, bounds={"x": (0, 1)})["x"]
    assert (found.low, found.high) == (pytest.approx(0.82), 1)


def test_records_of_one_person_are_drawn_together() -> None:
    assert units_of(["a", None, "b", "a", None, ""]).tolist() == [0, 1, 2, 0, 3, 4]
    units = units_of(["a", "a", "b", None, None])
    for weights in resamples(units, 50, 0):
        assert weights[0] == weights[1]
        assert weights[[0, 2, 3, 4]].sum() == 4  # as many units as there are


def test_the_spread_is_that_of_the_formula() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = bootstrap(mean_of(values), np.arange(400), replicates=2000)["mean"]
    expected = 2 * 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_a_seed_fixes_the_resamples() -> None:
    values = np.arange(20.0)
    one, same, other = (bootstrap(mean_of(values), np.arange(20), replicates=50, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_a_paired_difference_is_narrower() -> None:
    rng = np.random.default_rng(4)
    hard = rng.normal(size=200)
    better, worse = mean_of(hard + 0.2 + 0.05 * rng.normal(size=200)), mean_of(hard)
    gain = difference(better, worse)
    units = np.arange(200)
    assert gain(None)["mean"] == pytest.approx(better(None)["mean"] - worse(None)["mean"])
    paired = bootstrap(gain, units, replicates=300)["mean"]
    single = bootstrap(better, units, replicates=300)["mean"]
    assert paired.low > 0.15
    assert paired.high - paired.low < 0.2 * (single.high - single.low)


def test_undefined_resamples_are_counted() -> None:
    def sometimes(weights: np.ndarray | None) -> dict[str, float]:
        given = weights is None or weights[0] > 0
        return {"rare": 1.0 if given else math.nan, "never": math.nan}

    found = bootstrap(sometimes, np.arange(10), replicates=200)
    assert (found["rare"].low, found["rare"].high) == (1.0, 1.0)
    assert 30 < found["rare"].undefined < 110  # (1 - 1/10)^10 of 200 is 70
    assert math.isnan(found["never"].low)
    assert found["never"].undefined == 200


def test_what_has_no_interval_is_refused() -> None:
    statistic = mean_of(np.ones(3))
    with pytest.raises(DataError, match="no interval"):
        bootstrap(statistic, np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match="level"):
        bootstrap(statistic, np.arange(3), level=95)
    with pytest.raises(ConfigError, match="resample"):
        bootstrap(statistic, np.arange(3), replicates=0)
