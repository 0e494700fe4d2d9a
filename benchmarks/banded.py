"""Banded against independent noise: error of running sums at equal budget, and the client's cost of a round.

    python benchmarks/banded.py [--quick] [--json]

The error is what ``privacy/banded.py`` predicts; ``tests/privacy/test_banded.py`` holds it against matrices and a
simulation. The last line says how many bars hold; the exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import numpy as np

from carefl_secure.noise import KeyStream, SkellamSampler
from carefl_secure.noise.skellam import correlate
from carefl_secure.privacy.banded import choose_bands, coefficients, norm
from carefl_secure.secagg import plan_records

SHAPES = ((0.2, 20), (0.1, 20), (0.05, 40), (0.05, 200), (0.01, 300))
EPSILONS = (8.0, 4.0, 2.0)
MOMENTA = (0.0, 0.8, 0.9)
DELTA = 1e-5
HONEST, CLIENTS = 5, 8


def gains(shapes: tuple[tuple[float, int], ...]) -> list[dict[str, Any]]:
    """Return bands and relative error for every shape, epsilon and momentum."""
    rows = []
    for rate, rounds in shapes:
        for epsilon in EPSILONS:
            row: dict[str, Any] = {"rate": rate, "rounds": rounds, "epsilon": epsilon}
            for momentum in MOMENTA:
                bands, error = choose_bands(rounds, rate, epsilon, DELTA, momentum)
                row[f"bands {momentum:g}"], row[f"error {momentum:g}"] = bands, error
            rows.append(row)
    return rows


def cost(dimension: int) -> dict[str, float]:
    """Time the noise of one round of one client, interleaved, at the shape of the default run."""
    band = coefficients(5, 20, 0.8)
    variances = []
    for correlation, noise in (((1,), 1.2), (band, 1.6)):
        plan = plan_records(dimension, 1.0, noise * norm(correlation), 300.0, CLIENTS, HONEST)
        step = HONEST * correlation[0] if len(correlation) > 1 else 1
        variances.append(plan.share_variance() * step**2)
    past = {lag: np.zeros(dimension, np.int64) + lag for lag in range(1, len(band))}
    seconds = [math.inf, math.inf]
    for _ in range(5):
        for place, variance in enumerate(variances):
            began = time.perf_counter()
            fresh = SkellamSampler(variance).sample(KeyStream(bytes(32)), dimension)
            if place:
                correlate(fresh, past, band)
            seconds[place] = min(seconds[place], time.perf_counter() - began)
    passes = SkellamSampler(variances[1]).parts
    return {"independent": seconds[0], "banded": seconds[1], "passes": passes, "bands": len(band)}


def descent(rounds: int = 20, clients: int = 8, size: int = 2000) -> list[dict[str, Any]]:
    """Return what Adam leaves of a quadratic loss, at its best rate, at the default run's forecast and dropouts.

    From a distance of 1, with gradients of norm 0.0908 there, and noise of norm 0.236 in a round of independent noise
    (`carefl-secure plan`); one of eight clients is missing in each round. Means of three draws.
    """
    rows = []
    for name, band, multiplier in (("independent", (1,), 0.901), ("banded", coefficients(5, rounds, 0.8), 1.201)):
        deviation = 0.236 / math.sqrt(size) * math.sqrt(clients - 1.0) * multiplier / 0.901 * norm(band)
        ratios, found = np.asarray(band) / band[0], {}
        for rate in (0.001, 0.002, 0.003, 0.006, 0.01, 0.02, 0.03):
            losses = []
            for seed in range(3):
                rng = np.random.default_rng(seed)
                aim = rng.normal(size=size)
                aim, point, first, second = aim / np.linalg.norm(aim), np.zeros(size), np.zeros(size), np.zeros(size)
                kept: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(clients)]
                for number in range(1, rounds + 1):
                    total, missing = np.zeros(size), rng.integers(clients)
                    for client in range(clients):
                        drawn = deviation * rng.normal(size=size)
                        if client == missing:
                            continue
                        past = [one for one in kept[client] if number - one[0] < len(band)]
                        drawn -= sum(ratios[lag] * one[1] for lag, one in enumerate(reversed(past), 1))
                        kept[client] = [*past, (number, drawn)]
                        total += drawn
                    gradient = 0.0908 * (point - aim) + total / (clients - 1)
                    first, second = 0.8 * first + 0.2 * gradient, 0.99 * second + 0.01 * gradient**2
                    step = first / (1 - 0.8**number) / (np.sqrt(second / (1 - 0.99**number)) + 1e-8)
                    point = point - rate * step
                losses.append(float(np.sum((point - aim) ** 2)))
            found[rate] = float(np.mean(losses))
        best = min(found, key=lambda rate: found[rate])
        rows.append({"noise": name, "rate": best, "loss": found[best]})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer shapes, 100,000 values")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = gains(SHAPES[:1] if options.quick else SHAPES)
    seconds = cost(100_000 if options.quick else 1_000_000)
    left = descent()
    default = next(row for row in rows if (row["rate"], row["epsilon"]) == (0.2, 8.0))
    bars = {
        "default plan at epsilon 8, momentum 0.8: at most 0.72 of the error": default["error 0.8"] <= 0.72,
        "key-stream passes of a round: at most the number of bands": seconds["passes"] <= seconds["bands"],
    }
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "seconds": seconds, "descent": left, "bars": bars}) + "\n")
    else:
        columns = "".join(f" momentum {m:g} |" for m in MOMENTA)
        sys.stdout.write(f"| q | T | epsilon |{columns}\n|{' --- |' * (3 + len(MOMENTA))}\n")
        for row in rows:
            cells = "".join(f" {row[f'error {m:g}']:.2f} ({row[f'bands {m:g}']}) |" for m in MOMENTA)
            sys.stdout.write(f"| {row['rate']:g} | {row['rounds']} | {row['epsilon']:g} |{cells}\n")
        sys.stdout.write(f"noise of a round: {seconds}\n")
        for row in left:
            sys.stdout.write(
                f"Adam on a quadratic, {row['noise']} noise: {row['loss']:.3f} left at rate {row['rate']}\n"
            )
    for words, held in bars.items():
        sys.stderr.write(f"{'held' if held else 'MISSED'}: {words}\n")
    sys.stderr.write(f"{sum(bars.values())} of {len(bars)} bars hold\n")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
