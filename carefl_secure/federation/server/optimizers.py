"""What the server does with the mean gradient it opened: descent on one flat vector.

The opened sum is already private, so every step is post-processing and costs no budget. The rules are those of Reddi
et al., *Adaptive Federated Optimization* (ICLR 2021), in float64 until the adapter is written back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, NonFiniteError, RunError
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm

Vector = NDArray[np.float64]
State = dict[str, NDArray[np.float64] | int]


# Under noise correction no entry counts as less than this share of the noise's variance.
_LEAST_NOISE = 0.1


class ServerOptimizer(Protocol):
    """Turns a mean gradient into the next adapter and can be put into a checkpoint."""

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Return the next adapter; the one given is not changed."""

    def state(self) -> State:
        """Return everything needed to go on later."""

    def load(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` returned."""


@runtime_checkable
class Listener(Protocol):
    """An optimizer that wants to know more of a round than its mean gradient."""

    def observe(self, share: float, noise_variance: float) -> None:
        """Take the share of survivors of the next step's round, and the noise's variance in an entry of its mean."""


def checked(adapter: NDArray[np.float32], gradient: Vector) -> Vector:
    """Return the adapter in float64; NonFiniteError or RunError when the gradient is unfit."""
    if gradient.shape != adapter.shape:
        raise RunError(f"the gradient has shape {gradient.shape}, the adapter {adapter.shape}; their models differ")
    if not np.isfinite(gradient).all():
        raise NonFiniteError("the opened mean gradient holds NaN or infinity; the adapter was left as it is")
    return adapter.astype(np.float64)


def narrowed(vector: Vector) -> NDArray[np.float32]:
    """Write a point back to float32; NonFiniteError when it does not fit."""
    with np.errstate(over="ignore"):
        narrow = vector.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise NonFiniteError("the step left the range of float32; lower the server's learning rate")
    return narrow


def _vector(state: Mapping[str, object], name: str) -> Vector:
    value = state.get(name)
    if not isinstance(value, np.ndarray):
        raise RunError(f"the checkpoint holds no vector {name!r}; it was written by another optimizer")
    return value.astype(np.float64)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a positive number, not {value}")
    return value


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must lie in [0, 1), not {value}")
    return value


class FedAvg:
    """Descent with momentum in [0, 1): ``v = momentum * v + g``, ``adapter = adapter - learning_rate * v``."""

    def __init__(self, learning_rate: float, momentum: float = 0.0) -> None:
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.momentum = _fraction("momentum", momentum)
        self._velocity: Vector = np.zeros(0)

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Return ``adapter - learning_rate * v``; NonFiniteError, the state unchanged, when that is not finite."""
        point = checked(adapter, gradient)
        old = self._velocity if self._velocity.size else np.zeros_like(point)
        velocity = self.momentum * old + gradient
        moved = narrowed(point - self.learning_rate * velocity)
        self._velocity = velocity
        return moved

    def state(self) -> State:
        """Return the velocity."""
        return {"velocity": self._velocity.copy()}

    def load(self, state: Mapping[str, object]) -> None:
        """Take the velocity from a checkpoint."""
        self._velocity = _vector(state, "velocity")


class FedAdam:
    """Adam on the server, with bias correction and optional noise correction.

    ``m = b1 m + (1-b1) g``, ``v = b2 v + (1-b2) g^2``,
    ``adapter = adapter - learning_rate * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)``.

    With ``noise_correction``, the public variance ``u`` of the noise is averaged as v is and subtracted again, as the
    square of a noisy gradient is too large by it: ``max(v / (1-b2^t) - u / (1-b2^t), 0.1 u / (1-b2^t))`` stands under
    the root. The lower bound keeps an entry without signal from growing more than threefold.

    Each entry changes by about ``learning_rate``, above 0, in a round, times its ``scale``, [D] or one number.
    ``eps``, above 0, is added to the root; noise keeps that away from 0, so small values are safe. With
    ``noise_correction``, `observe` must come before every step.

    References
    ----------
    Tang, Shpilevskiy and Lécuyer, "DP-AdamBC: Your DP-Adam Is Actually DP-SGD (Unless You Apply Bias Correction)",
    AAAI 2024 (arXiv 2312.14334); its lower bound is a constant, not a share of the noise.
    """

    def __init__(
        self,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        *,
        noise_correction: bool = False,
        scale: Vector | float = 1.0,
    ) -> None:
        self.learning_rate = _positive("learning_rate", learning_rate)
        self.betas = (_fraction("beta 1", betas[0]), _fraction("beta 2", betas[1]))
        self.eps = _positive("eps", eps)
        self.noise_correction, self.scale = noise_correction, scale
        self._first: Vector = np.zeros(0)
        self._second: Vector = np.zeros(0)
        self._steps, self._noise = 0, 0.0
        self._observed: float | None = None

    def observe(self, share: float, noise_variance: float) -> None:
        """Take the noise's variance of the next step."""
        del share
        self._observed = noise_variance

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Return the adapter after one Adam step, float32, shape [D].

        Raises NonFiniteError when the gradient or the step is not finite, and the state is then
        unchanged; RunError, with noise correction, when `observe` was not called for this step.
        """
        point = checked(adapter, gradient)
        b1, b2 = self.betas
        first = b1 * (self._first if self._first.size else np.zeros_like(point)) + (1 - b1) * gradient
        second = b2 * (self._second if self._second.size else np.zeros_like(point)) + (1 - b2) * gradient**2
        steps = self._steps + 1
        noise, variance = self._noise, second / (1 - b2**steps)
        if self.noise_correction:
            if self._observed is None:
                raise RunError("noise correction needs the noise of this step: call observe first")
            noise = b2 * noise + (1 - b2) * self._observed
            known = noise / (1 - b2**steps)
            variance = np.maximum(variance - known, _LEAST_NOISE * known)
        direction = (first / (1 - b1**steps)) / (np.sqrt(variance) + self.eps)
        moved = narrowed(point - self.learning_rate * self.scale * direction)
        self._first, self._second, self._steps = first, second, steps
        self._noise, self._observed = noise, None
        return moved

    def state(self) -> State:
        """Return both averages and the number of steps, and the noise's average where it counts."""
        out: State = {"first": self._first.copy(), "second": self._second.copy(), "steps": self._steps}
        return {**out, "noise": np.array([self._noise])} if self.noise_correction else out

    def load(self, state: Mapping[str, object]) -> None:
        """Take averages and step count from a checkpoint."""
        first, second, steps = _vector(state, "first"), _vector(state, "second"), state.get("steps")
        if not isinstance(steps, int) or steps < 0:
            raise RunError("the checkpoint holds no step count; it was written by another optimizer")
        if self.noise_correction:
            self._noise = float(_vector(state, "noise")[0])
        self._first, self._second, self._steps = first, second, steps


class FedDyn:
    r"""Dynamic regularisation: the mean of the clients' points, corrected by h.

    With the mean update :math:`\bar\delta = \frac1s \sum_i (w_i - w)` of s survivors among n
    clients (Acar et al., ICLR 2021, arXiv 2111.04263, Algorithm 1):

    .. math::
        h \leftarrow h - \alpha\,\frac{s}{n}\,\bar\delta, \qquad
        w \leftarrow w + \bar\delta - h / \alpha

    ``alpha`` is the clients' regulariser, above 0. Clients keep ``h_i``, with mean h. It needs no learning rate.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = _positive("feddyn_alpha", alpha)
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
        point = checked(adapter, gradient)
        if self._share is None:
            raise RunError("FedDyn needs the share of clients that survived: call observe first")
        old = self._state if self._state.size else np.zeros_like(point)
        state = old + self.alpha * self._share * gradient
        with np.errstate(over="ignore"):
            moved = (point - gradient - state / self.alpha).astype(np.float32)
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
        self._state = _vector(state, "correction")


class AdaptiveClipping:
    """Takes the steps of another optimizer, and moves the clipping norm, the adapter's last entry, by ``rule``.

    The other optimizer gets the other entries, in units of real gradients. ``updates`` says whether clients release
    updates, whose sums have the opposite sign. Nothing but the adapter holds the norm.
    """

    def __init__(self, optimizer: ServerOptimizer, rule: AdaptiveNorm, *, updates: bool = False) -> None:
        self._optimizer, self._rule, self._sign = optimizer, rule, -1.0 if updates else 1.0
        self._observed = (1.0, 0.0)
        self.state, self.load = optimizer.state, optimizer.load

    def observe(self, share: float, noise_variance: float) -> None:
        """Take the figures of the next step's round, in units of the plan's norm."""
        self._observed = share, noise_variance

    def step(self, adapter: NDArray[np.float32], gradient: Vector) -> NDArray[np.float32]:
        """Return the next adapter with the next norm, [D + 1]; see the optimizers for the errors."""
        norm = self._rule.norm(adapter)
        signal = self._rule.signal(norm)
        if isinstance(self._optimizer, Listener):
            share, variance = self._observed
            self._optimizer.observe(share, variance / signal**2)
        moved = self._optimizer.step(adapter[:-1], gradient[:-1] / signal)
        return np.append(moved, np.float32(self._rule.follow(norm, self._sign * float(gradient[-1]))))


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
