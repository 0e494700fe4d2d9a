"""A server step for each half of the adapter, where the halves take turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import RunError
from carefl_secure.federation.server.optimizers import Listener, ServerOptimizer, State, checked, narrowed

Vector = NDArray[np.float64]


class Alternating:
    """Steps one half of the adapter in odd rounds and the other half in even ones.

    Each half has an optimizer of its own, and the resting half does not change, whatever noise its
    entries of the sum carry. ``trains``, bool, shape [D], is True where an entry trains in odd
    rounds; ``finished`` counts the rounds before the first step, as rounds are numbered across
    stages.
    """

    def __init__(
        self, odd: ServerOptimizer, even: ServerOptimizer, trains: NDArray[np.bool_], finished: int = 0
    ) -> None:
        self._halves = {"odd": (odd, trains), "even": (even, ~trains)}
        self._steps = finished

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Step the half whose turn it is; see the optimizers for the errors."""
        optimizer, trains = self._halves["even" if self._steps % 2 else "odd"]
        updated = narrowed(checked(adapter, gradient))
        updated[trains] = optimizer.step(adapter[trains], gradient[trains])
        self._steps += 1
        return updated

    def skip(self) -> None:
        """Give the turn to the other half without a step."""
        self._steps += 1

    def observe(self, share: float, noise_variance: float) -> None:
        """Pass the figures of the round on to the half whose turn it is."""
        optimizer, _ = self._halves["even" if self._steps % 2 else "odd"]
        if isinstance(optimizer, Listener):
            optimizer.observe(share, noise_variance)

    def state(self) -> State:
        """Return both optimizers' states and the number of steps."""
        out: State = {"turns": self._steps}
        for name, (optimizer, _) in self._halves.items():
            out.update({f"{name}.{key}": value for key, value in optimizer.state().items()})
        return out

    def load(self, state: Mapping[str, object]) -> None:
        """Take both states from a checkpoint."""
        steps = state.get("turns")
        if not isinstance(steps, int) or steps < 0:
            raise RunError("the checkpoint was not written by an alternating optimizer")
        for name, (optimizer, _) in self._halves.items():
            start = f"{name}."
            optimizer.load({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
        self._steps = steps
