"""Banded factorisations: their error against matrices, and the gains that were computed for them elsewhere."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.noise.skellam import correlate
from carefl_secure.privacy.banded import (
    attended_error,
    choose_bands,
    coefficients,
    norm,
    predicted_error,
    response,
    running_error,
)
from tests.privacy.test_plan import RECORD
from tests.support.banded import exact_error


def matrices(correlation: tuple[int, ...], rounds: int, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the workload of a momentum optimizer, and C."""
    steps = np.arange(rounds)
    lags = steps[:, None] - steps[None, :]
    sums = np.where(lags >= 0, (1.0 - momentum ** np.maximum(lags + 1.0, 0.0)) / (1.0 - momentum), 0.0)
    c = np.zeros((rounds, rounds))
    for k, m in enumerate(correlation):
        c[lags == k] = m / correlation[0]
    return sums, c


@pytest.mark.parametrize(("correlation", "rounds", "momentum"), [((4, 4, 3, 3, 2), 20, 0.8), ((8, 5, -2), 7, 0.0)])
def test_errors_are_those_of_the_matrices(correlation: tuple[int, ...], rounds: int, momentum: float) -> None:
    sums, c = matrices(correlation, rounds, momentum)
    inverse = np.linalg.inv(c)
    assert np.allclose(response(correlation, rounds), inverse[:, 0])
    assert norm(correlation) == pytest.approx(np.linalg.norm(c[:, 0]))
    whole = np.linalg.norm(sums @ inverse) / math.sqrt(rounds) * norm(correlation)
    assert running_error(correlation, rounds, momentum) == pytest.approx(whole)
    everyone = np.ones((3, rounds), np.bool_)
    assert exact_error(correlation, everyone, momentum) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("rate", "rounds", "epsilon", "bands", "gain"),
    [(0.2, 20, 8.0, 5, 0.70), (0.05, 40, 8.0, 20, 0.45), (0.2, 20, 2.0, 5, 0.965)],
)
def test_known_gains(rate: float, rounds: int, epsilon: float, bands: int, gain: float) -> None:
    """Figures of an independent computation with real coefficients, at momentum 0.9."""
    found = predicted_error(bands, rounds, rate, epsilon, 1e-5, 0.9) / predicted_error(
        1, rounds, rate, epsilon, 1e-5, 0.9
    )
    assert found == pytest.approx(gain, abs=0.01)


def test_coefficients_are_near_the_best_and_never_above_the_first() -> None:
    for bands, rounds, momentum in ((2, 20, 0.0), (5, 20, 0.8), (20, 40, 0.9)):
        found = coefficients(bands, rounds, momentum)
        assert len(found) == bands
        assert max(map(abs, found)) == found[0]
        rng = np.random.default_rng(0)
        others = [
            (64, *np.clip(np.array(found[1:]) * 64 // found[0] + rng.integers(-6, 7, bands - 1), -64, 64))
            for _ in range(50)
        ]
        assert running_error(found, rounds, momentum) <= 1.006 * min(
            running_error(o, rounds, momentum) for o in others
        )


def test_the_choice_of_bands() -> None:
    bands, gain = choose_bands(20, 0.2, 8.0, 1e-5, 0.8)
    assert bands == 5
    assert gain == pytest.approx(0.70, abs=0.01)
    assert choose_bands(20, 0.2, 2.0, 1e-5, 0.0)[1] > 1.0  # plain sums at epsilon 2: independent noise is better
    assert choose_bands(20, 0.2, 8.0, 1e-5, 0.8, 3)[0] == 3


def test_the_prediction_holds_in_a_simulation_with_dropouts() -> None:
    """Eight clients, of whom one or two miss each round; the noise of every client by the integer recursion."""
    correlation, clients, rounds, size, momentum = (8, 7, 6, 5, 5), 8, 20, 4000, 0.8
    rng = np.random.default_rng(3)
    attended = np.ones((clients, rounds), np.bool_)
    for number in range(rounds):
        attended[rng.choice(clients, 1 + number % 2, replace=False), number] = False
    variance = 1e6
    sampler, total = SkellamSampler(variance), np.zeros((rounds, size))
    for client in range(clients):
        kept: dict[int, np.ndarray] = {}
        for number in np.flatnonzero(attended[client]):
            kept = {t: n for t, n in kept.items() if number - t < len(correlation)}
            past = {lag: kept[t] for lag, t in enumerate(sorted(kept, reverse=True), 1)}
            fresh = sampler.sample(KeyStream(rng.bytes(32)), size)
            kept[number] = correlate(fresh, past, correlation)
            total[number] += kept[number]
    total *= (clients / attended.sum(axis=0))[:, None]
    for number in range(1, rounds):
        total[number] += momentum * total[number - 1]
    measured = math.sqrt(np.mean(np.cumsum(total, axis=0) ** 2) / (clients * variance))
    predicted = exact_error(correlation, attended, momentum) / norm(correlation)
    assert measured == pytest.approx(predicted, rel=0.05)
    assert measured > 1.1 * running_error(correlation, rounds, momentum) / norm(correlation)  # dropouts do cost
    planned = attended_error(correlation, rounds, momentum, attended.mean()) / norm(correlation)
    assert planned / math.sqrt(attended.mean()) == pytest.approx(measured, rel=0.05)  # what `auto` goes by
    assert choose_bands(rounds, 0.2, 4.0, 1e-5, momentum, None, 0.75)[1] > 1.0  # better only while nobody drops out
    assert choose_bands(rounds, 0.2, 4.0, 1e-5, momentum)[1] < 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"correlation": (4, 4)}, "lower ones after"),
        ({"correlation": (4,)}, "2 or more"),
        ({"correlation": (4, 3, 2), "sample_rate": 0.4}, "3 bands"),
        ({"correlation": (4, -3, -3)}, "grow from round to round"),
        ({"correlation": (4, 3), "unit": "person"}, "single records"),
    ],
)
def test_refused_correlations(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(RECORD, **changes)
