"""A client whose records have known clipped gradients, in place of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_Vector = npt.NDArray[np.float64]
_Adapter = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int64]


class KnownTask:
    """Records whose clipped gradients are the rows of a matrix; each is a person of its own.

    Records beyond the rows have a gradient of zero. ``observe(number, indices)`` sees every sample.
    """

    most_records = 1

    def __init__(
        self, gradients: _Vector, records: int, observe: Callable[[int, _Indices], None] | None = None
    ) -> None:
        self._gradients = gradients[:records]
        self.dimension = int(gradients.shape[1])
        self.records = self.persons = records
        self._observe = observe

    def clipped_sum(self, adapter: _Adapter, indices: _Indices, number: int) -> _Vector:
        """Return the sum of the rows."""
        if self._observe is not None:
            self._observe(number, indices.copy())
        total: _Vector = self._gradients[indices[indices < len(self._gradients)]].sum(axis=0)
        return total

    def clipped_person_sum(self, adapter: _Adapter, persons: _Indices, number: int) -> _Vector:
        """Return the sum of the rows."""
        return self.clipped_sum(adapter, persons, number)

    def trainable_entries(self, number: int) -> npt.NDArray[np.bool_]:
        """Return that everything trains."""
        return np.ones(self.dimension, np.bool_)

    def gradient(self, adapter: _Adapter, indices: _Indices, number: int) -> _Vector:
        """Return the mean of the rows."""
        return self.clipped_sum(adapter, indices, number) / len(indices)
