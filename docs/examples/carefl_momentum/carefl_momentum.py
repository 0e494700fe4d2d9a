"""A local rule from outside carefl-secure: heavy-ball momentum in a client's local steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Momentum:
    """Heavy-ball momentum of 0.5; one object serves the steps of one round."""

    def __init__(self) -> None:
        self._velocity: Vector | None = None

    def step(self, gradient: Vector) -> Vector:
        """Return the velocity, ``v = 0.5 v + g``."""
        past = np.zeros_like(gradient) if self._velocity is None else self._velocity
        self._velocity = 0.5 * past + gradient
        return self._velocity
