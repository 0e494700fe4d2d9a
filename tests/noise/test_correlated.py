"""The recursion of banded noise: exact shifts, and the likelihood ratio of whole releases by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.noise.skellam import correlate

Vector = NDArray[np.int64]
Choice = Callable[[list[Vector]], Vector]

M = (2, 1)  # c = 1, 1/2: two bands
RATE = 0.6
LAW = {-2: 0.1, -1: 0.2, 0: 0.4, 1: 0.2, 2: 0.1}


def test_a_known_answer() -> None:
    past = {1: np.array([3, -3, 5]), 2: np.array([2, 2, -7])}
    # (4 * 3 + 3 * 2) / 4 = 4.5, (-12 + 6) / 4 = -1.5, (20 - 21) / 4 = -0.25, halves upwards
    assert correlate(np.array([10, 10, 10]), past, (4, 4, 3)).tolist() == [5, 11, 10]


@pytest.mark.parametrize("correlation", [(2, 1), (4, 4, 3, 3, 2), (8, 7, -3)])
def test_multiples_shift_exactly(correlation: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    fresh = rng.integers(-1000, 1000, 500)
    past = {lag: rng.integers(-1000, 1000, 500) for lag in range(1, len(correlation))}
    moved = {lag: rng.integers(-9, 9, 500) for lag in past}
    shifted = {lag: past[lag] + correlation[0] * moved[lag] for lag in past}
    expected = -sum(correlation[lag] * moved[lag] for lag in past)
    assert np.array_equal(correlate(fresh, shifted, correlation) - correlate(fresh, past, correlation), expected)
    assert np.array_equal(correlate(fresh + 7, past, correlation), correlate(fresh, past, correlation) + 7)


def worlds(variables: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return every value of some independent fresh noises, shape [variables, N], and their probabilities."""
    values = np.array(list(LAW))
    drawn = np.array(np.meshgrid(*[values] * variables, indexing="ij")).reshape(variables, -1)
    chances = np.array(list(LAW.values()))
    return drawn, np.prod(chances[drawn + 2], axis=0)


def released(w: Vector, x: Sequence[int], included: Choice, recursion: Callable[..., Vector]) -> Vector:
    """Play three clients over rounds of two survivors each: ``w`` [3, rounds, N], ``x`` the record's part of a sum.

    ``included`` gives, from the sums seen so far, who is left out of the next one (0, 1 or 2); all keep their noise.
    """
    clients, rounds, _ = w.shape
    step, kept, sums = 2 * M[0], [[] for _ in range(clients)], list[Vector]()
    for t in range(rounds):
        for i in range(clients):
            past = {1: kept[i][-1]} if kept[i] else {}
            kept[i].append(recursion(w[i, t], past, M))
        noise = np.stack([kept[i][t] for i in range(clients)])
        out = included(sums)
        left = np.where(np.arange(clients)[:, None] == out, 0, noise).sum(axis=0)
        sums.append(step * x[t] + left)
    return np.stack(sums)


def law(sums: Vector, chances: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    keys, places = np.unique(sums, axis=1, return_inverse=True)
    masses = np.bincount(places.ravel(), chances)
    return {tuple(map(int, key)): float(mass) for key, mass in zip(keys.T, masses, strict=True)}


def mixed(laws: Sequence[tuple[float, dict[tuple[int, ...], float]]]) -> dict[tuple[int, ...], float]:
    total: dict[tuple[int, ...], float] = {}
    for weight, one in laws:
        for key, mass in one.items():
            total[key] = total.get(key, 0.0) + weight * mass
    return total


def hockey_stick(p: dict[tuple[int, ...], float], q: dict[tuple[int, ...], float], epsilon: float) -> float:
    return sum(max(0.0, mass - math.exp(epsilon) * q.get(key, 0.0)) for key, mass in p.items())


def claimed(participations: int) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    """Return the pair that the event prices: shifts by m of the fresh noise of both counted clients, drawn anew."""
    w, chances = worlds(4)
    shift = np.array([M[0], M[0], M[1], M[1]])[:, None]
    one = law(w, chances)
    drawn = mixed([(1 - RATE, one), (RATE, law(w + shift, chances))])
    ratio = np.array([(mass, drawn.get(key, 0.0)) for key, mass in one.items()])
    beyond = np.array([(0.0, mass) for key, mass in drawn.items() if key not in one])
    pairs = np.concatenate([ratio, beyond])
    # equal likelihood ratios are one outcome
    with np.errstate(divide="ignore"):
        kinds, places = np.unique(np.round(np.log(pairs[:, 0]) - np.log(pairs[:, 1]), 9), return_inverse=True)
    del kinds
    masses = np.stack([np.bincount(places, pairs[:, side]) for side in (0, 1)], axis=1)
    both = [
        {
            key: float(np.prod([masses[i, side] for i in key]))
            for key in itertools.product(range(len(masses)), repeat=participations)
        }
        for side in (0, 1)
    ]
    return both[0], both[1]


def pair(
    rounds: Sequence[int], total: int, included: Choice, recursion: Callable[..., Vector] = correlate
) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    """Return the exact laws of all sums without a record and with it, drawn for each of ``rounds`` by a coin."""
    w, chances = worlds(3 * total)
    shaped = w.reshape(3, total, -1)
    without = law(released(shaped, [0] * total, included, recursion), chances)
    laws = []
    for coins in itertools.product((0, 1), repeat=len(rounds)):
        x = [0] * total
        for place, coin in zip(rounds, coins, strict=True):
            x[place] = coin
        weight = math.prod(RATE if coin else 1 - RATE for coin in coins)
        laws.append((weight, law(released(shaped, x, included, recursion), chances)))
    return without, mixed(laws)


def last_out(sums: list[Vector]) -> Vector:
    return np.array(2)


def turns(sums: list[Vector]) -> Vector:
    return np.array(len(sums) % 3)


def adaptive(sums: list[Vector]) -> Vector:
    return sums[-1] % 3 if sums else np.array(0)


def excess(
    pairs: tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]],
    bound: tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]],
) -> float:
    """Return by how much the exact delta exceeds the claimed one at most, in either direction."""
    return max(
        hockey_stick(pairs[a], pairs[b], epsilon) - hockey_stick(bound[a], bound[b], epsilon)
        for a, b in ((0, 1), (1, 0))
        for epsilon in (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
    )


@pytest.mark.parametrize("included", [last_out, turns, adaptive])
def test_the_event_covers_every_dropout(included: Choice) -> None:
    """One record in the first of two rounds, survivors chosen by the server, from what it saw or not."""
    assert excess(pair([0], 2, included), claimed(1)) <= 1e-12


@pytest.mark.slow
def test_two_rounds_of_a_record() -> None:
    assert excess(pair([0, 2], 3, adaptive), claimed(2)) <= 1e-12


def test_two_rounds_within_a_band_are_not_covered() -> None:
    assert excess(pair([0, 1], 2, last_out), claimed(1)) > 1e-3


def test_a_noise_vector_used_twice_is_not_covered() -> None:
    def twice(fresh: Vector, past: dict[int, Vector], m: tuple[int, ...]) -> Vector:
        return past[1] if past else fresh

    assert excess(pair([0], 2, last_out, twice), claimed(1)) > 1e-3
