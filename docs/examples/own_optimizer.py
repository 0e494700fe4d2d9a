"""A server optimizer of your own, under the secure sum and the accounting of the package.

``python own_optimizer.py`` trains a small linear model across six clients with masked sums and distributed noise, once
by `FedAvg` and once by momentum on signs, and prints the loss and the epsilon of both. The optimizer sees opened sums
alone, so it is post-processing and costs no privacy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAvg, ServerOptimizer
from carefl_secure.federation.server.run import run_federation
from carefl_secure.run_folder import RunFolder

CLIENTS, RECORDS, DIMENSION, ROUNDS = 6, 200, 20, 12


class SignMomentum:
    """Moves every value by one step against the sign of an averaged gradient. It satisfies `ServerOptimizer`."""

    def __init__(self, learning_rate: float, momentum: float = 0.8) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum
        self.average = np.zeros(0)

    def step(self, adapter: NDArray[np.float32], gradient: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the next adapter; the one given is not changed."""
        if not self.average.size:
            self.average = np.zeros_like(gradient)
        self.average = self.momentum * self.average + (1.0 - self.momentum) * gradient
        return (adapter - self.learning_rate * np.sign(self.average)).astype(np.float32)

    def state(self) -> dict[str, NDArray[np.float64] | int]:
        """Return what a resumed run needs."""
        return {"average": self.average}

    def load(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` returned."""
        self.average = np.asarray(state["average"], np.float64)


class LinearTask:
    """One client's records: points x with labels y, and clipped gradients of the logistic loss. A `LocalTask`."""

    dimension, records = DIMENSION, RECORDS

    def __init__(self, truth: NDArray[np.float64], seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.x = draw.normal(size=(RECORDS, DIMENSION))
        self.y = np.sign(self.x @ truth + 0.3 * draw.normal(size=RECORDS))

    def loss(self, adapter: NDArray[np.float32]) -> float:
        """Return the mean logistic loss."""
        return float(np.logaddexp(0.0, -self.y * (self.x @ adapter)).mean())

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 0
    ) -> NDArray[np.float64]:
        """Return the sum of the gradients of the sampled records, each clipped to norm 1."""
        x, y = self.x[indices], self.y[indices]
        gradients = -(y / (1.0 + np.exp(y * (x @ adapter))))[:, None] * x
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        total: NDArray[np.float64] = (gradients / np.maximum(1.0, norms)).sum(axis=0)
        return total


def train(optimizer: ServerOptimizer, folder: Path) -> tuple[float, float, float]:
    """Train across all clients; return the loss before and after, and the epsilon that was spent."""
    truth = np.random.default_rng(1).normal(size=DIMENSION)
    tasks = [LinearTask(truth, seed) for seed in range(CLIENTS)]
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=DIMENSION,
            clients=CLIENTS,
            rounds=ROUNDS,
            public_records=CLIENTS * RECORDS,
            sample_rate=0.25,
            clipping_norm=1.0,
            delta=1e-4,
            target_epsilon=8.0,
        )
    )
    start = np.zeros(DIMENSION, np.float32)
    spec = RunSpec(
        stage=Stage.only(plan), tasks=lambda: tasks, folder=RunFolder.create(folder, ""), base_hash=bytes(32)
    )
    found = run_federation(spec, start, optimizer)
    before, after = (float(np.mean([task.loss(one) for task in tasks])) for one in (start, found.adapter))
    return before, after, float(spec.folder.read_metrics()[-1]["epsilon"])


def main() -> None:
    """Compare the two optimizers."""
    with tempfile.TemporaryDirectory() as name:
        for optimizer in (FedAvg(1.0), SignMomentum(0.1)):
            before, after, epsilon = train(optimizer, Path(name))
            print(f"{type(optimizer).__name__}: loss {before:.3f} -> {after:.3f} at epsilon {epsilon:.3f}")


if __name__ == "__main__":
    sys.exit(main())
