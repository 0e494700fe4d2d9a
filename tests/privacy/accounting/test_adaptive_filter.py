"""A limit over runs of which each may be chosen by looking at the ones before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from carefl_secure.errors import BudgetExceededError
from carefl_secure.privacy import Event, SampledGaussian, calibrate_noise, epsilon
from carefl_secure.privacy.accounting.accountant import coarse_epsilon
from carefl_secure.privacy.accounting.composition import filtered_epsilon

DELTA = 1e-5
LIMIT = 8.0


def hockey_stick(event: SampledGaussian, eps: float) -> float:
    """Exact delta of one sampled Gaussian release with the record against without, any epsilon."""
    q, z = event.sample_rate, event.noise_multiplier
    if math.exp(eps) <= 1.0 - q:
        return 1.0 - math.exp(eps)
    at = z**2 * math.log((math.exp(eps) - 1.0 + q) / q) + 0.5
    outside, inside = ndtr(-at / z), ndtr(-(at - 1.0) / z)
    return float((1.0 - q - math.exp(eps)) * outside + q * inside)


def adversary(
    first: SampledGaussian, accepts: Callable[[Sequence[Event]], bool]
) -> tuple[float, list[SampledGaussian]]:
    """Reach the largest delta at the limit: see the first output, then take the worst second run.

    The candidates differ in how rare and how clear a loss is; each has the least noise that the
    ledger accepts after the first run.
    """
    candidates: list[SampledGaussian] = []
    for rate in (1.0, 0.01, 1e-5, 3e-6):
        low, high = math.log(0.1), math.log(1e3)
        for _ in range(12):
            middle = 0.5 * (low + high)
            fits = accepts([SampledGaussian(rate, math.exp(middle))])
            low, high = (low, middle) if fits else (middle, high)
        candidates.append(SampledGaussian(rate, math.exp(high)))
    z = first.noise_multiplier
    outputs = np.linspace(1.0 - 9.0 * z, 1.0 + 9.0 * z, 4001)
    weights = norm.pdf(outputs, 1.0, z) * (outputs[1] - outputs[0])
    spent = (2.0 * outputs - 1.0) / (2.0 * z**2)
    worst = [max(hockey_stick(event, LIMIT - loss) for event in candidates) for loss in spent]
    return float(weights @ np.array(worst)), candidates


@pytest.fixture(scope="module")
def first() -> SampledGaussian:
    noise = calibrate_noise(lambda z: SampledGaussian(1.0, z), 6.0, DELTA)
    return SampledGaussian(1.0, noise)


def test_composition_of_what_was_spent_is_no_filter(first: SampledGaussian) -> None:
    """The attack works on plain composition, so the next test could fail."""
    reached, _ = adversary(first, lambda later: coarse_epsilon([first, *later], DELTA, 3e-3) <= LIMIT)
    assert reached > 1.2 * DELTA


def test_no_choice_of_a_second_run_passes_the_limit(first: SampledGaussian) -> None:
    reached, candidates = adversary(first, lambda later: filtered_epsilon([first], later, LIMIT, DELTA) <= LIMIT)
    assert reached <= DELTA
    assert min(event.noise_multiplier for event in candidates) < 10.0  # and something is allowed


def test_one_run_is_priced_by_composition(first: SampledGaussian) -> None:
    assert filtered_epsilon([first], [], LIMIT, DELTA) == epsilon([first], DELTA)
    assert filtered_epsilon([], [], LIMIT, DELTA) == 0.0


def test_a_first_run_that_needs_the_whole_delta_leaves_nothing() -> None:
    noise = calibrate_noise(lambda z: SampledGaussian(0.1, z, 20), LIMIT, DELTA)
    later = [SampledGaussian(0.1, 100.0)]
    assert filtered_epsilon([SampledGaussian(0.1, noise, 20)], later, LIMIT, DELTA) == math.inf


@pytest.mark.parametrize(("rate", "count", "more"), [(0.01, 300, 4), (0.1, 20, 3), (1.0, 20, 2)])
def test_what_the_filter_costs(rate: float, count: int, more: int) -> None:
    """The figures of docs/accounting.md: further runs like a first one of epsilon 4, limit 8."""
    noise = calibrate_noise(lambda z: SampledGaussian(rate, z, count), 4.0, DELTA)
    run = SampledGaussian(rate, noise, count)
    allowed = 0
    while filtered_epsilon([run], [run.times(count * (allowed + 1))], LIMIT, DELTA) <= LIMIT:
        allowed += 1
    assert allowed == more - 1
    assert epsilon([run.times(count * more)], DELTA) <= LIMIT


def test_more_releases_never_cost_less() -> None:
    first, later = [SampledGaussian(0.1, 1.5, 20)], SampledGaussian(0.1, 2.0, 1)
    prices = [filtered_epsilon(first, [later.times(n)], LIMIT, DELTA) for n in (1, 5, 20, 100)]
    assert prices == sorted(prices)


def test_the_error_says_that_later_runs_may_depend_on_earlier_ones(tmp_path: object) -> None:
    from pathlib import Path

    from carefl_secure.privacy import Ledger

    book = Ledger(Path(str(tmp_path)) / "l.jsonl")
    event = SampledGaussian(1.0, 1.0)
    book.spend(event, LIMIT, DELTA, {"run": "one", "unit": "record"})
    with pytest.raises(BudgetExceededError, match="may depend on earlier"):
        book.spend(event.times(3), LIMIT, DELTA, {"run": "two", "unit": "record"})
