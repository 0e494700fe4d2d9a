"""What a client's model and data look like from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class LocalTask(Protocol):
    """One client's work; ``records`` is how many it really holds, which stays inside the client."""

    @property
    def dimension(self) -> int:
        """Number of entries of the flat adapter vector."""

    @property
    def records(self) -> int:
        """Number of records that this client holds; never sent anywhere."""

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return the sum of clipped per-record loss gradients, float64, shape [D], at one point.

        ``sum_i clip(grad loss_i(adapter))``: each term has Euclidean norm of at most the clipping norm of the plan.
        ``indices``: int64, shape [B], sorted, distinct; empty where nobody was drawn. ``number`` counts rounds from 1:
        some adapters train another half in every other round. The work should tell little of how many were drawn.
        """


@runtime_checkable
class PersonTask(LocalTask, Protocol):
    """A task that knows which of its records show one person."""

    @property
    def persons(self) -> int:
        """Number of persons that this client holds; never sent anywhere."""

    @property
    def most_records(self) -> int:
        """Number of records of the person that has most; 0 without records."""

    def clipped_person_sum(
        self, adapter: NDArray[np.float32], persons: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return the sum of the clipped gradients of some persons, float64, shape [D].

        ``sum_p clip(grad mean_{i of p} loss_i(adapter))``: each person has a norm of at most the
        clipping norm of the plan, however many records it has. ``persons``: int64, shape [P],
        sorted, distinct; empty where nobody was drawn.
        """


@runtime_checkable
class DescentTask(LocalTask, Protocol):
    """A task that clients can take steps of their own with."""

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        """Return which entries train in round ``number``, shape [D]."""

    def gradient(self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        """Return the mean loss's gradient over records ``indices``, int64, [B], B > 0; 0 where nothing trains."""


@dataclass(frozen=True)
class DeferredTask:
    """A task whose records are not looked at before the first vector is computed.

    ``dimension`` is known beforehand; ``make`` returns the task, or raises where its records cannot
    be used. A client may hold more records than were declared: leaving the excess out would let one
    record displace another, and so move the sum twice as far as the plan counts with.
    """

    dimension: int
    make: Callable[[], LocalTask]


@dataclass(frozen=True)
class NoRecords:
    """The task of a client that has no record: it adds nothing to the noise."""

    dimension: int
    records = persons = most_records = 0

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return zeros."""
        return np.zeros(self.dimension)

    clipped_person_sum = gradient = clipped_sum

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        """Return that all train, so that all get noise."""
        return np.ones(self.dimension, np.bool_)
