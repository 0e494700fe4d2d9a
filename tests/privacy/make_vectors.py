"""Figures of banded noise by jax_privacy, as ``vectors/jax_privacy.json`` holds them.

jax_privacy is no dependency of this project. To write the file again:

    python -m venv /tmp/jax && /tmp/jax/bin/pip install jax-privacy==2.0.0
    /tmp/jax/bin/python tests/privacy/make_vectors.py > tests/privacy/vectors/jax_privacy.json

Nothing of carefl_secure is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax_privacy import accounting
from jax_privacy.matrix_factorization import banded, optimization, toeplitz

RECORDS = 1_000_000
DELTA = 1e-5
PLANS = (
    (0.2, 20, 1), (0.2, 20, 3), (0.2, 20, 5), (0.1, 20, 10), (0.05, 40, 1), (0.05, 40, 20), (0.05, 200, 10),
    (0.01, 300, 32),
)  # fmt: skip
SHAPES = ((20, 5), (20, 10), (40, 20), (200, 10), (300, 32))
MOMENTA = (0.0, 0.8, 0.9)
DENSE = ((20, 5), (20, 10), (40, 20))
FIXED = ((20, (7, 4, 3, 2, 2)), (20, (5, 4, 4, 3, 3)), (40, (8, 6, 5, 3)), (23, (16, 9, 7)))


def noise_multiplier(rate: float, rounds: int, bands: int, epsilon: float) -> float:
    """Calibrate banded noise under cyclic Poisson sampling, with privacy loss distributions."""
    return float(
        accounting.calibrate_noise_multiplier(
            target_epsilon=epsilon,
            accountant=accounting.DpsgdTrainingAccountant(accounting.PldAccountantConfig()),
            batch_sizes=round(rate * RECORDS),
            num_updates=rounds,
            num_samples=RECORDS,
            target_delta=DELTA,
            cycle_length=bands,
            tol=1e-5,
        )
    )


def error(coefficients: jax.Array, rounds: int, momentum: float) -> jax.Array:
    """Return the root mean square error of momentum's running sums, at noise multiplier 1."""
    workload = jnp.cumsum(momentum ** jnp.arange(rounds))
    squares = toeplitz.per_query_error(strategy_coef=coefficients, n=rounds, workload_coef=workload, skip_checks=True)
    return jnp.sqrt(jnp.mean(squares) * toeplitz.sensitivity_squared(coefficients, rounds))


def figures() -> dict[str, Any]:
    """Return noise multipliers, least errors, and errors and sensitivities of given coefficients."""
    noise = [
        {"rate": rate, "rounds": rounds, "bands": bands, "epsilon": epsilon,
         "noise_multiplier": noise_multiplier(rate, rounds, bands, epsilon)}
        for rate, rounds, bands in PLANS
        for epsilon in (8.0, 2.0)
    ]  # fmt: skip
    least = []
    for rounds, bands in SHAPES:
        for momentum in MOMENTA:

            def loss(c: jax.Array, rounds: int = rounds, momentum: float = momentum) -> jax.Array:
                return error(c, rounds, momentum)

            start = toeplitz.optimal_max_error_strategy_coefs(bands)
            best = optimization.optimize(jax.jit(loss), start)
            least.append({"rounds": rounds, "bands": bands, "momentum": momentum, "error": float(loss(best))})
    dense = []
    for rounds, bands in DENSE:
        squares = banded.per_query_error(banded.optimize(rounds, bands=bands))
        dense.append({"rounds": rounds, "bands": bands, "error": math.sqrt(float(jnp.mean(squares)))})
    fixed = []
    for rounds, numbers in FIXED:
        c = jnp.asarray(numbers, jnp.float64) / numbers[0]
        square = toeplitz.minsep_sensitivity_squared(c, len(numbers), n=rounds)
        errors = [float(error(c, rounds, momentum)) for momentum in MOMENTA]
        fixed.append(
            {"rounds": rounds, "coefficients": numbers, "sensitivity": math.sqrt(float(square)), "errors": errors}
        )
    versions = {name: importlib.metadata.version(name) for name in ("jax-privacy", "jax", "dp-accounting")}
    return {
        "source": "https://github.com/google-deepmind/jax_privacy, by tests/privacy/make_vectors.py",
        "versions": versions, "delta": DELTA, "momenta": MOMENTA, "noise": noise, "least_error": least,
        "least_error_column_normalised": dense, "given_coefficients": fixed,
    }  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    json.dump(figures(), sys.stdout, indent=1)
