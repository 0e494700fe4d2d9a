"""What one client computes in a round: the real vector that it releases, before noise and masks.

One seam for all units. `ClientSession` pays, asks a `LocalWork` for the vector, encodes it, adds
its share of the noise where the plan has one, and masks it; it does not know which work it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, NonFiniteError, PrivacyError
from carefl_secure.federation.correction import Correction
from carefl_secure.federation.local_plan import LocalPlan
from carefl_secure.federation.planning import RunPlan
from carefl_secure.federation.task import DescentTask, LocalTask, PersonTask
from carefl_secure.noise import KeySource, KeyStream, gaussian
from carefl_secure.privacy import poisson_sample

__all__ = ["GradientSum", "LocalWork", "NoisyDescent", "PlainDescent", "local_work"]

Adapter = NDArray[np.float32]
Vector = NDArray[np.float64]

# Aims this much below the norm, so that rounding stays inside it.
_MARGIN = 1e-6
_STABILITY = 0.01


class LocalWork(Protocol):
    """One client's computation, under one plan."""

    def release(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        """Return the vector of one round, float64, shape [D].

        Parameters
        ----------
        adapter : ndarray of float32, shape [D]
            The global adapter.
        number : int
            Number of the round.
        keys : KeySource
            Fresh keys for samples, shuffles and noise.

        Raises
        ------
        NonFiniteError
            When a loss, a gradient or the vector is NaN or infinite.
        """

    def save(self) -> bytes:
        """Return what the next round needs besides plan and records; empty for most."""

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned."""


def local_work(plan: RunPlan, task: LocalTask, index: int, memory: Path | None = None) -> LocalWork:
    """Choose the work that a plan asks for.

    Parameters
    ----------
    plan : RunPlan
    task : LocalTask
        Of the kind that the plan's unit needs.
    index : int
        The client's place in the roster.
    memory : Path, optional
        Where FedDyn's correction is kept between processes.

    Raises
    ------
    ConfigError
        When the task cannot do it.
    PrivacyError
        When the client holds more than was declared.
    """
    privacy = plan.privacy
    by_person = privacy.unit == "person"
    held = task.records
    if by_person:
        if not isinstance(task, PersonTask):
            raise ConfigError("this task does not know its persons, which unit 'person' needs")
        held = task.persons
        most = privacy.records_per_person
        if most is not None and task.most_records > most:
            raise PrivacyError(
                f"client {index} holds a person with {task.most_records} records, the plan allows "
                f"{most}; leave records out before the run"
            )
    if held > privacy.public_records:
        raise PrivacyError(
            f"client {index} holds more {'persons' if by_person else 'records'} than all clients "
            "together declared; declare a larger public_records"
        )
    if plan.local is None:
        return GradientSum(plan, task)
    if not isinstance(task, DescentTask):
        raise ConfigError("this task cannot take local steps; it gives clipped sums only")
    correction = None
    if plan.local.feddyn_alpha:
        correction = Correction(plan.encoding.dimension, plan.local.feddyn_alpha, memory)
    kind = NoisyDescent if privacy.trust == "none" else PlainDescent
    return kind(plan, plan.local, task, index, correction)


class GradientSum:
    """The clipped gradients of a Poisson sample, added up: a share of one step of DP-SGD.

    Guarantees
    ----------
    One unit more or less (a record, or a person where that is the unit) moves the vector by
    ``plan.privacy.sensitivity`` at most, and enters it with probability ``event_rate`` at most.
    """

    def __init__(self, plan: RunPlan, task: LocalTask) -> None:
        self._plan = plan
        self._task = task

    def release(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        """Sample and add; an empty sample gives zeros, which go out like any other vector."""
        privacy, task = self._plan.privacy, self._task
        stream = KeyStream(keys.key("sample"))
        whole = privacy.unit == "person" and privacy.records_per_person is None
        if whole and isinstance(task, PersonTask):
            drawn = poisson_sample(task.persons, privacy.sample_rate, stream)
            if drawn.size:
                return task.clipped_person_sum(adapter, drawn, number)
        else:
            drawn = poisson_sample(task.records, privacy.sample_rate, stream)
            if drawn.size:
                return task.clipped_sum(adapter, drawn, number)
        return np.zeros(self._plan.encoding.dimension)

    def save(self) -> bytes:
        """Return nothing: no round depends on another."""
        return b""

    def restore(self, saved: bytes) -> None:
        """Take nothing."""


class _Descent:
    """Local steps from the global adapter; the kinds differ in the gradient and in the release."""

    def __init__(
        self,
        plan: RunPlan,
        local: LocalPlan,
        task: DescentTask,
        index: int,
        correction: Correction | None,
    ) -> None:
        self._plan = plan
        self._local = local
        self._task = task
        self._index = index
        self._correction = correction

    def release(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        """Take the steps of this round and return the bounded move."""
        local = self._local
        start = adapter.astype(np.float64)
        mask = self._task.mask(number)
        tilt = np.zeros_like(start)
        if self._correction is not None:
            tilt = self._correction.at(number)
        point = start.copy()
        steps = local.steps_of(self._index, self._plan.privacy.clients, number)
        for gradient in self._gradients(lambda: _narrow(point), number, keys, mask, steps):
            move = gradient - tilt + local.pull * (point - start)
            point[mask] -= local.learning_rate * move[mask]
        delta = self._bounded(point - start)
        if not np.isfinite(delta).all():
            raise NonFiniteError(f"the local steps of client {self._index} left the finite numbers")
        if self._correction is not None:
            self._correction.advance(number, delta)
        return delta

    def save(self) -> bytes:
        """Return FedDyn's correction, where there is one."""
        return b"" if self._correction is None else self._correction.save()

    def restore(self, saved: bytes) -> None:
        """Take FedDyn's correction."""
        if self._correction is not None and saved:
            self._correction.restore(saved)

    def _gradients(
        self,
        point: _Point,
        number: int,
        keys: KeySource,
        mask: NDArray[np.bool_],
        steps: int,
    ) -> Iterator[Vector]:
        raise NotImplementedError

    def _bounded(self, delta: Vector) -> Vector:
        raise NotImplementedError


class _Point(Protocol):
    def __call__(self) -> Adapter: ...


class NoisyDescent(_Descent):
    r"""Ordinary local DP-SGD; what is released is private by itself, whoever sees it.

    Each step draws records with probability q, adds their clipped gradients and Gaussian noise of
    deviation z C from the AES key stream, and divides by the public ``q N / n`` for N declared
    records and n clients:

    .. math:: \tilde g = \frac{n}{q N} \Big(\sum_i \mathrm{clip}(g_i) + z C\, \xi\Big)

    Guarantees
    ----------
    The noisy gradients of K steps are K releases of ``SampledGaussian(q, z)``; everything after
    them, with it the move, its clipping to the planned bound and FedDyn's correction, is made from
    them alone. A straggler makes fewer. The assumption is that the noise is Gaussian: it is drawn
    in double precision (see ``noise.gaussian``), at least 53 bits of each draw and four draws for
    each entry, so neither the gaps between doubles nor a cut tail (17 deviations) are covered by
    a proof. What leaves the client has been rounded to integers besides.
    """

    def _gradients(
        self,
        point: _Point,
        number: int,
        keys: KeySource,
        mask: NDArray[np.bool_],
        steps: int,
    ) -> Iterator[Vector]:
        privacy = self._plan.privacy
        stdev = privacy.noise_multiplier * privacy.clipping_norm
        batch = privacy.expected_batch / privacy.clients
        for _ in range(steps):
            drawn = poisson_sample(
                self._task.records, privacy.sample_rate, KeyStream(keys.key("sample"))
            )
            total = np.zeros(mask.size)
            if drawn.size:
                total = self._task.clipped_sum(point(), drawn, number).copy()
            if not np.isfinite(total).all():
                raise NonFiniteError(f"a clipped sum of client {self._index} is not finite")
            total[mask] += gaussian(KeyStream(keys.key("noise")), int(mask.sum()), stdev)
            yield total / batch

    def _bounded(self, delta: Vector) -> Vector:
        """Cut every entry to the planned range: a refusal would show, and this is free."""
        bound = self._plan.encoding.vector_bound
        return np.clip(delta, -bound, bound)


class PlainDescent(_Descent):
    """Ordinary local training on shuffled batches, its move bounded as a whole.

    Under unit client the move is scaled to a Euclidean norm of at most C (to nearly C where the
    plan normalises), and that is all the promise needs: whatever the client's records, its batches
    or its memory were, its vector has norm C at most. FedDyn's correction is part of what the
    client holds, like its records: leaving the client out leaves out both, and nothing but the
    bounded move ever leaves it. The correction is computed from that bounded move, so that the
    server's mean of the moves and the clients' corrections stay one another's counterparts.
    Without privacy nothing is bounded; a move outside the planned range is refused when encoded.
    """

    def _gradients(
        self,
        point: _Point,
        number: int,
        keys: KeySource,
        mask: NDArray[np.bool_],
        steps: int,
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

    def _bounded(self, delta: Vector) -> Vector:
        privacy = self._plan.privacy
        if privacy.unit != "client":
            return delta
        norm = float(np.linalg.norm(delta))
        if not np.isfinite(norm):
            raise NonFiniteError(f"the move of client {self._index} is not finite")
        bound = privacy.clipping_norm * (1.0 - _MARGIN)
        if privacy.normalise:
            return delta * (bound / (norm + _STABILITY * privacy.clipping_norm))
        return delta * min(1.0, bound / max(norm, np.finfo(np.float64).tiny))


def _narrow(point: Vector) -> Adapter:
    with np.errstate(over="ignore"):
        return point.astype(np.float32)
