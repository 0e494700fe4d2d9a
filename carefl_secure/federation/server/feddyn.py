"""The server's half of FedDyn, from sums alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, NonFiniteError, RunError
from carefl_secure.federation.server.optimizers import State

Vector = NDArray[np.float64]


class FedDyn:
    r"""Dynamic regularisation: the mean of the clients' points, corrected by h.

    With the mean update :math:`\bar\delta = \frac1s \sum_i (w_i - w)` of s survivors among n
    clients (Acar et al., ICLR 2021, arXiv 2111.04263, Algorithm 1):

    .. math::
        h \leftarrow h - \alpha\,\frac{s}{n}\,\bar\delta, \qquad
        w \leftarrow w + \bar\delta - h / \alpha

    ``alpha`` is the clients' regulariser, above 0. The clients keep the other half, ``h_i``; h is
    the mean of theirs. It needs no learning rate.
    """

    def __init__(self, alpha: float) -> None:
        if not (math.isfinite(alpha) and alpha > 0):
            raise ConfigError(f"feddyn_alpha is {alpha}; choose it above 0")
        self.alpha = alpha
        self._state: Vector = np.zeros(0)
        self._share: float | None = None

    def observe(self, share: float, noise_variance: float) -> None:
        """Take the share of clients that survived the round."""
        del noise_variance
        self._share = share

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Return the next adapter; ``gradient`` is minus the mean update, noise included.

        Raises NonFiniteError when the update or the step is not finite, and the state is then
        unchanged; RunError when the shapes differ, or `observe` was not called.
        """
        if gradient.shape != adapter.shape:
            raise RunError(f"an update of shape {gradient.shape} does not fit {adapter.shape}")
        if self._share is None:
            raise RunError("FedDyn needs the share of clients that survived: call observe first")
        old = self._state if self._state.size else np.zeros(adapter.size)
        state = old + self.alpha * self._share * gradient
        with np.errstate(over="ignore"):
            moved = (adapter.astype(np.float64) - gradient - state / self.alpha).astype(np.float32)
        if not np.isfinite(moved).all():
            raise NonFiniteError(
                "FedDyn's step is not finite; lower federation.local_lr or raise federation.feddyn_alpha"
            )
        self._state, self._share = state, None
        return moved

    def state(self) -> State:
        """Return h."""
        return {"correction": self._state.copy()}

    def load(self, state: Mapping[str, object]) -> None:
        """Take h from a checkpoint."""
        found = state.get("correction")
        if not isinstance(found, np.ndarray):
            raise RunError("the checkpoint was not written by FedDyn; resume with its own rule")
        self._state = found.astype(np.float64)
