"""A task in plain numpy: record i has the loss ``|w - x_i|^2 / 2``, so everything has a formula."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def clip(vector: Vector, norm: float, normalise: bool) -> Vector:
    """Bring a vector to a norm by the definition."""
    length = float(np.linalg.norm(vector))
    if normalise:
        return vector * (norm / (length + 0.01))
    return vector * min(1.0, norm / max(length, 1e-300))


class PointTask:
    """Records are points; persons own some of them."""

    def __init__(
        self, points: Vector, owners: NDArray[np.int64] | None = None, norm: float = 1.0, normalise: bool = False
    ) -> None:
        self.points = points
        owners = np.arange(len(points)) if owners is None else owners
        self.people = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
        self.norm = norm
        self.normalise = normalise
        self.log: list[tuple[str, Vector, NDArray[np.int64]]] = []

    @property
    def dimension(self) -> int:
        return self.points.shape[1]

    @property
    def records(self) -> int:
        return len(self.points)

    @property
    def persons(self) -> int:
        return len(self.people)

    @property
    def most_records(self) -> int:
        return max(map(len, self.people), default=0)

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        return np.ones(self.dimension, bool)

    def _single(self, adapter: NDArray[np.float32], index: int) -> Vector:
        return adapter.astype(np.float64) - self.points[index]

    def clipped_sum(self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int) -> Vector:
        self.log.append(("record", adapter.astype(np.float64), indices))
        total = np.zeros(self.dimension)
        for index in indices.tolist():
            total += clip(self._single(adapter, index), self.norm, self.normalise)
        return total

    def clipped_person_sum(self, adapter: NDArray[np.float32], persons: NDArray[np.int64], number: int) -> Vector:
        self.log.append(("person", adapter.astype(np.float64), persons))
        total = np.zeros(self.dimension)
        for person in persons.tolist():
            parts = [self._single(adapter, index) for index in self.people[person].tolist()]
            total += clip(np.mean(parts, axis=0), self.norm, self.normalise)
        return total

    def gradient(self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int) -> Vector:
        self.log.append(("plain", adapter.astype(np.float64), indices))
        mean: Vector = np.mean([self._single(adapter, i) for i in indices.tolist()], axis=0)
        return mean


def point_tasks(clients: int, dimension: int = 40, records: int = 24, spread: float = 1.0) -> list[PointTask]:
    """Clients with centres of their own, three records to a person."""
    rng = np.random.default_rng(11)
    tasks = []
    for _ in range(clients):
        centre = spread * rng.normal(size=dimension)
        points = centre + rng.normal(size=(records, dimension))
        tasks.append(PointTask(points, np.arange(records) // 3))
    return tasks
