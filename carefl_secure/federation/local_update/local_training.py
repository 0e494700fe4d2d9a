"""Local steps from the global adapter, their registry of rules, and what of them a client releases."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from carefl_secure.extensions import find_extension
from carefl_secure.federation.local_update.feddyn_state import Correction
from carefl_secure.federation.local_update.gradient_sum import LocalWork
from carefl_secure.federation.local_update.task import DescentTask
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.noise import KeySource, KeyStream, gaussian
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm

Adapter = NDArray[np.float32]
Vector = NDArray[np.float64]

# Aims this much below the norm, so that rounding stays inside it.
_MARGIN = 1e-6
_STABILITY = 0.01

ENTRY_POINTS = "carefl_secure.local_rules"
"""The entry point group of rules that other packages bring."""


class LocalRule(Protocol):
    """A client's optimizer for the steps of one round; made anew for each.

    Guarantees
    ----------
    A rule needs no proof of its own: what leaves the client is bounded afterwards (unit client), or
    no privacy is promised (unit none). Under trust none only ``sgd`` is accepted, because the noise
    that the plan reports is computed for it.
    """

    def step(self, gradient: Vector) -> Vector:
        """Return the direction, float64, shape [D], for the gradient of the local objective with regularisers."""


class Sgd:
    """Plain stochastic gradient descent."""

    def step(self, gradient: Vector) -> Vector:
        """Return the gradient."""
        return gradient


LOCAL_RULES: Mapping[str, Callable[[], LocalRule]] = {"sgd": Sgd}
"""Rules of the package by name; a rule is a class with a `step` method, named here or under an entry point."""


def find_rule(name: str) -> Callable[[], LocalRule]:
    """Return what makes a rule; ConfigError when no package or several bring it, or it cannot be imported."""
    if name in LOCAL_RULES:
        return LOCAL_RULES[name]
    rule: Callable[[], LocalRule] = find_extension(ENTRY_POINTS, "federation.local_rule", name, LOCAL_RULES)[1]
    return rule


class _Descent(LocalWork):
    """Local steps from the global adapter; the kinds differ in the gradient and in the release."""

    def __init__(
        self, plan: RunPlan, local: LocalPlan, task: DescentTask, index: int, correction: Correction | None
    ) -> None:
        super().__init__(plan)
        self._local = local
        self._task = task
        self._index = index
        self._correction = correction
        self._make_rule = find_rule(local.rule)  # an unknown one is refused before any charge

    def _compute(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        """Take the steps of this round and return the bounded update."""
        local = self._local
        start = adapter.astype(np.float64)
        mask = self._task.trainable_entries(number)
        tilt = np.zeros_like(start)
        if self._correction is not None:
            tilt = self._correction.at(number)
        point = start.copy()
        rule = self._make_rule()
        steps = local.steps_of(self._index, self._plan.privacy.clients, number)
        for gradient in self._gradients(lambda: _narrow(point), number, keys, mask, steps):
            total = gradient - tilt + local.pull * (point - start)
            point[mask] -= local.learning_rate * rule.step(total)[mask]
        delta = self._bounded(point - start, start)
        if self._correction is not None and np.isfinite(delta).all():
            self._correction.advance(number, delta)
        return delta

    def save(self) -> bytes:
        """Return FedDyn's correction, where there is one."""
        return b"" if self._correction is None else self._correction.save()

    def restore(self, saved: bytes) -> None:
        """Take FedDyn's correction."""
        if self._correction is not None and saved:
            self._correction.restore(saved)

    @abstractmethod
    def _gradients(
        self, point: _Point, number: int, keys: KeySource, mask: NDArray[np.bool_], steps: int
    ) -> Iterator[Vector]:
        """Yield the gradient of each step."""

    @abstractmethod
    def _bounded(self, delta: Vector, start: Vector) -> Vector:
        """Return the update from ``start`` as it may be released."""


class _Point(Protocol):
    def __call__(self) -> Adapter: ...


class NoisyDescent(_Descent):
    r"""Ordinary local DP-SGD; what is released is private by itself, whoever sees it.

    Each step draws records with probability q, adds their clipped gradients and Gaussian noise of deviation z C from
    the AES key stream, and divides by the public ``q N / n`` for N declared records and n clients:

    .. math:: \tilde g = \frac{n}{q N} \Big(\sum_i \mathrm{clip}(g_i) + z C\, \xi\Big)

    Guarantees
    ----------
    The noisy gradients of K steps are K releases of ``SampledGaussian(q, z)``; everything after them, including the
    update, its clipping to the planned bound and FedDyn's correction, is made from them alone. A straggler makes
    fewer. The assumption is that the noise is Gaussian: it is drawn in double precision (see ``noise.gaussian``), at
    least 53 bits of each draw and four draws for each entry, so neither the gaps between doubles nor a cut tail (17
    deviations) are covered by a proof. What leaves the client has been rounded to integers besides.
    """

    def _gradients(
        self, point: _Point, number: int, keys: KeySource, mask: NDArray[np.bool_], steps: int
    ) -> Iterator[Vector]:
        privacy = self._plan.privacy
        stdev = privacy.noise_multiplier * privacy.clipping_norm
        batch = privacy.expected_batch / privacy.clients
        for _ in range(steps):
            drawn = poisson_sample(self._task.records, privacy.sample_rate, KeyStream(keys.key("sample")))
            # The noise of this step goes out whatever the records do.
            draw = functools.partial(self._task.clipped_sum, point(), drawn, number)
            total = self._contained(draw, number).copy()
            total[mask] += gaussian(KeyStream(keys.key("noise")), int(mask.sum()), stdev)
            yield total / batch

    def _bounded(self, delta: Vector, start: Vector) -> Vector:
        """Cut every entry to the planned range: a refusal would show, and this is free."""
        bound = self._plan.encoding.vector_bound
        return np.clip(delta, -bound, bound)


class PlainDescent(_Descent):
    """Ordinary local training on shuffled batches; the update is bounded as a whole.

    Under unit client the update is scaled to a Euclidean norm of at most C (to nearly C where the plan normalises; as
    `AdaptiveNorm` says where the norm follows a quantile, with a last entry that no step moves),
    whatever the client's records, batches or memory. FedDyn's correction is part of what the client holds, like its
    records: leaving the client out leaves out both, and only the bounded update ever leaves it. The correction is
    computed from that bounded update, so that it stays consistent with the server's mean. Without privacy nothing is
    bounded; encoding refuses an update outside the planned range.
    """

    def _gradients(
        self, point: _Point, number: int, keys: KeySource, mask: NDArray[np.bool_], steps: int
    ) -> Iterator[Vector]:
        records = self._task.records
        if not records:
            return
        size = max(1, round(self._local.batch_share * records))
        row = np.zeros(0, np.int64)
        for _ in range(steps):
            if row.size < size:
                stream = KeyStream(keys.key("shuffle"))
                row = np.argsort(stream.words(records, np.uint64), kind="stable").astype(np.int64)
            batch, row = row[:size], row[size:]
            yield self._task.gradient(point(), np.sort(batch), number)

    def _bounded(self, delta: Vector, start: Vector) -> Vector:
        privacy = self._plan.privacy
        if privacy.unit != "client":
            return delta
        norm, adaptive = float(np.linalg.norm(delta)), AdaptiveNorm.of(privacy)
        most = privacy.clipping_norm if adaptive is None else adaptive.norm(start)
        bound = most * (1.0 - _MARGIN)
        if privacy.normalise:
            return delta * (bound / (norm + _STABILITY * privacy.clipping_norm))
        clipped = delta * min(1.0, bound / max(norm, np.finfo(np.float64).tiny))
        return clipped if adaptive is None else adaptive.extend(clipped[:-1], most, 1 if norm <= bound else -1)


def _narrow(point: Vector) -> Adapter:
    with np.errstate(over="ignore"):
        return point.astype(np.float32)
