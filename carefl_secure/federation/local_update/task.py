"""What a client's model and data look like from here: sums of clipped gradients, and gradients."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["DescentTask", "LocalTask", "PersonTask"]


class LocalTask(Protocol):
    """The work of one client, free of any federation or deep-learning type.

    ``dimension`` is the length D of the flat adapter. ``records`` is the number of records this
    client really holds; it stays inside the client: sampling needs it, nothing sends it.
    """

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

        ``sum_i clip(grad loss_i(adapter))``: each term has Euclidean norm of at most the clipping
        norm of the plan. ``indices``: int64, shape [B], sorted, distinct, never empty. ``number``
        counts rounds from 1: some adapters train another half in every other round.
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
        sorted, distinct, never empty.
        """


@runtime_checkable
class DescentTask(LocalTask, Protocol):
    """A task that clients can take steps of their own with."""

    def trainable_entries(self, number: int) -> NDArray[np.bool_]:
        """Return which entries train in round ``number``, shape [D]."""

    def gradient(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return the gradient of the mean loss of some records, unclipped; 0 where nothing trains.

        ``indices``: int64, shape [B], never empty.
        """
