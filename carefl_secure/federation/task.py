"""What a client's model and data look like from here: one method that returns one clipped sum."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LocalTask"]


class LocalTask(Protocol):
    """The work of one client, free of any federation or deep-learning type.

    Attributes
    ----------
    dimension : int
        Number of entries D of the flat adapter vector.
    records : int
        Number of records this client really holds. It stays inside the client: sampling needs it,
        nothing sends it.
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
        """Sum the clipped per-record loss gradients of some records at one point.

        Parameters
        ----------
        adapter : ndarray of float32, shape [D]
            The global adapter of this round.
        indices : ndarray of int64, shape [B]
            Records to use, sorted, without repeats, never empty.
        number : int
            Number of the round, from 1: some adapters train another half in every other round.

        Returns
        -------
        ndarray of float64, shape [D]
            ``sum_i clip(grad loss_i(adapter))``: each term has Euclidean norm of at most the
            clipping norm of the plan.
        """
