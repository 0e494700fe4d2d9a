"""A server step for each half of the adapter, where the halves take turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import RunError
from carefl_secure.federation.server.optimizers import (
    Listener,
    ServerOptimizer,
    State,
    checked,
    narrowed,
)

__all__ = ["Alternating"]

Vector = NDArray[np.float64]


class Alternating:
    """Steps one half of the adapter in odd rounds and the other half in even ones.

    Each half has an optimiser of its own, and the resting half does not move, whatever noise its
    entries of the sum carry.

    Parameters
    ----------
    odd, even : ServerOptimizer
    mask : ndarray of bool, shape [D]
        True where an entry trains in odd rounds.
    """

    def __init__(
        self, odd: ServerOptimizer, even: ServerOptimizer, mask: NDArray[np.bool_]
    ) -> None:
        self._halves = {"odd": (odd, mask), "even": (even, ~mask)}
        self._steps = 0

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Step the half whose turn it is; see the optimisers for the errors."""
        optimiser, mask = self._halves["even" if self._steps % 2 else "odd"]
        moved = narrowed(checked(adapter, gradient))
        moved[mask] = optimiser.step(adapter[mask], gradient[mask])
        self._steps += 1
        return moved

    def hear(self, share: float, noise_variance: float) -> None:
        """Pass the facts of the round on to the half whose turn it is."""
        optimiser, _ = self._halves["even" if self._steps % 2 else "odd"]
        if isinstance(optimiser, Listener):
            optimiser.hear(share, noise_variance)

    def state(self) -> State:
        """Return both optimisers' states and the number of steps."""
        out: State = {"turns": self._steps}
        for name, (optimiser, _) in self._halves.items():
            out.update({f"{name}.{key}": value for key, value in optimiser.state().items()})
        return out

    def load(self, state: Mapping[str, object]) -> None:
        """Take both states from a checkpoint."""
        steps = state.get("turns")
        if not isinstance(steps, int) or steps < 0:
            raise RunError("the checkpoint was not written by an alternating optimiser")
        for name, (optimiser, _) in self._halves.items():
            start = f"{name}."
            optimiser.load(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
        self._steps = steps
