"""A server step on some entries of the adapter, or on parts of it that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import RunError
from carefl_secure.federation.server.optimizers import Listener, ServerOptimizer, State, checked, narrowed

Vector = NDArray[np.float64]


class Alternating:
    """Steps the part of the adapter whose turn it is.

    Every part has an optimizer of its own. Entries outside it do not change, whatever noise they carry in the sum.
    ``parts`` are one or two pairs of an optimizer and a mask, bool, shape [D], True where an entry trains: for every
    round, or for odd and even rounds. ``finished`` counts the rounds before the first step, as rounds are numbered
    across stages.
    """

    def __init__(self, parts: Sequence[tuple[ServerOptimizer, NDArray[np.bool_]]], finished: int = 0) -> None:
        self._parts = dict(zip(("odd", "even"), parts, strict=False))
        self._steps = finished

    def _turn(self) -> tuple[ServerOptimizer, NDArray[np.bool_]]:
        return list(self._parts.values())[self._steps % len(self._parts)]

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Step the part whose turn it is; see the optimizers for the errors."""
        optimizer, trains = self._turn()
        updated = narrowed(checked(adapter, gradient))
        updated[trains] = optimizer.step(adapter[trains], gradient[trains])
        self._steps += 1
        return updated

    def skip(self) -> None:
        """Give the turn to the other part without a step."""
        self._steps += 1

    def observe(self, share: float, noise_variance: float) -> None:
        """Pass the figures of the round on to the part whose turn it is."""
        optimizer, _ = self._turn()
        if isinstance(optimizer, Listener):
            optimizer.observe(share, noise_variance)

    def state(self) -> State:
        """Return the optimizers' states and the number of steps."""
        out: State = {"turns": self._steps}
        for name, (optimizer, _) in self._parts.items():
            out.update({f"{name}.{key}": value for key, value in optimizer.state().items()})
        return out

    def load(self, state: Mapping[str, object]) -> None:
        """Take the states from a checkpoint."""
        steps = state.get("turns")
        if not isinstance(steps, int) or steps < 0:
            raise RunError("the checkpoint was not written by an alternating optimizer")
        for name, (optimizer, _) in self._parts.items():
            start = f"{name}."
            optimizer.load({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
        self._steps = steps
