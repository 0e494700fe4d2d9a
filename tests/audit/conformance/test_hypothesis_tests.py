"""The tests of the mechanism's laws: right on true laws, sharp on false ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from carefl_secure.audit.conformance.hypothesis_tests import noise_chances, sampler_test
from carefl_secure.noise import KeyStream, SystemKeySource
from carefl_secure.privacy import poisson_sample

RECORDS, RATE, ROUNDS = 400, 0.1, 30


def poisson(rng: np.random.Generator) -> np.ndarray:
    return poisson_sample(RECORDS, RATE, KeyStream(SystemKeySource().key("sample")))


def fixed(rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(RECORDS, int(RATE * RECORDS), replace=False))


def too_often(rng: np.random.Generator) -> np.ndarray:
    return np.flatnonzero(rng.random(RECORDS) < 1.15 * RATE)


def favourites(rng: np.random.Generator) -> np.ndarray:
    chances = np.linspace(0.2, 1.8, RECORDS) * RATE
    return np.flatnonzero(rng.random(RECORDS) < chances)


def worst(draw: Callable[[np.random.Generator], np.ndarray], seed: int) -> float:
    rng = np.random.default_rng(seed)
    batches = {client: [draw(rng) for _ in range(ROUNDS)] for client in range(4)}
    return sampler_test(batches, RECORDS, RATE).worst


def test_poisson_samples_pass_and_their_p_values_are_spread_out() -> None:
    found = np.array([worst(poisson, seed) for seed in range(100)])
    assert np.mean(found < 0.01) <= 0.09 and np.mean(found > 0.2) > 0.3


@pytest.mark.parametrize("draw", [fixed, too_often, favourites])
def test_other_laws_fail(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    assert max(worst(draw, seed) for seed in range(5)) < 1e-6


def test_shuffled_epochs_of_varying_size_fail() -> None:
    """The sizes are those of Poisson sampling; only that everybody has a turn gives it away."""
    rng = np.random.default_rng(0)
    drawn: list[np.ndarray] = []
    left = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        size = int(rng.binomial(RECORDS, RATE))
        if len(left) < size:
            left = rng.permutation(RECORDS)
        drawn.append(np.sort(left[:size]))
        left = left[size:]
    test = sampler_test({0: drawn}, RECORDS, RATE)
    assert test.spread < 1e-6 < test.size_variance


def test_the_same_sample_at_two_clients_is_seen() -> None:
    one = [poisson(np.random.default_rng(0)) for _ in range(ROUNDS)]
    assert sampler_test({0: one, 1: one}, RECORDS, RATE).repeats == ROUNDS


def test_a_rate_of_one_takes_everybody() -> None:
    everyone = np.arange(RECORDS)
    assert sampler_test({0: [everyone, everyone]}, RECORDS, 1.0).worst == 1.0
    assert sampler_test({0: [everyone, everyone[1:]]}, RECORDS, 1.0).worst == 0.0


def test_noise_of_the_right_law_passes() -> None:
    rng = np.random.default_rng(1)
    found = np.array([noise_chances(rng.normal(size=2000)) for _ in range(200)])
    assert np.all(np.mean(found < 0.05, axis=0) < 0.11)


@pytest.mark.parametrize("scale", [0.95, 1.05])
def test_noise_of_another_scale_fails(scale: float) -> None:
    rng = np.random.default_rng(2)
    assert noise_chances(scale * rng.normal(size=40_000))[0] < 1e-6


def test_noise_of_another_shape_fails() -> None:
    rng = np.random.default_rng(3)
    flat = rng.uniform(-np.sqrt(3), np.sqrt(3), size=40_000)
    assert noise_chances(flat)[1] < 1e-6
