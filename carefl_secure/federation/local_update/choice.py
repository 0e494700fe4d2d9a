"""The choice of the local work that a plan asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import CareflError, ConfigError, PrivacyError
from carefl_secure.federation.local_update.feddyn_state import Correction
from carefl_secure.federation.local_update.gradient_sum import GradientSum, LocalWork
from carefl_secure.federation.local_update.local_training import NoisyDescent, PlainDescent
from carefl_secure.federation.local_update.task import DeferredTask, DescentTask, LocalTask, NoRecords, PersonTask
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource

Adapter = NDArray[np.float32]
Vector = NDArray[np.float64]


def local_work(plan: RunPlan, task: LocalTask | DeferredTask, index: int, memory: Path | None = None) -> LocalWork:
    """Choose the work that a plan asks for.

    ``memory`` is where FedDyn's correction is kept between processes. Raises ConfigError when the
    task is not of the kind that the plan's unit needs, PrivacyError when the client holds more than
    declared; for a deferred task neither before the first vector, and the second not at all.
    """
    if isinstance(task, DeferredTask):
        return _DeferredWork(plan, task, index, memory)
    privacy = plan.privacy
    by_person = privacy.unit == "person"
    held = task.records
    if by_person:
        held = _persons(task).persons
        most = privacy.records_per_person
        if most is not None and _persons(task).most_records > most:
            raise PrivacyError(
                f"client {index} holds a person with {_persons(task).most_records} records, the "
                f"plan allows {most}; leave records out before the run"
            )
    if held > privacy.public_records:
        raise PrivacyError(
            f"client {index} holds more {'persons' if by_person else 'records'} than all clients "
            "together declared; declare a larger public_records"
        )
    return _work_of(plan, task, index, memory)


def _persons(task: LocalTask) -> PersonTask:
    if not isinstance(task, PersonTask):
        raise ConfigError("this task does not know its persons, which unit 'person' needs")
    return task


def _work_of(plan: RunPlan, task: LocalTask, index: int, memory: Path | None) -> LocalWork:
    if plan.local is None:
        return GradientSum(plan, task)
    if not isinstance(task, DescentTask):
        raise ConfigError("this task cannot take local steps; it gives clipped sums only")
    correction = None
    if plan.local.feddyn_alpha:
        correction = Correction(plan.encoding.dimension, plan.local.feddyn_alpha, memory)
    kind = NoisyDescent if plan.privacy.trust == "none" else PlainDescent
    return kind(plan, plan.local, task, index, correction)


class _DeferredWork(LocalWork):
    """The work of a deferred task; where records cannot be used, a protected run sends noise all the same."""

    def __init__(self, plan: RunPlan, task: DeferredTask, index: int, memory: Path | None) -> None:
        super().__init__(plan)
        self._made_of = task, index, memory
        self._work: LocalWork | None = None

    def _made(self) -> LocalWork:
        if self._work is None:
            deferred, index, memory = self._made_of
            try:
                task = deferred.make()
            except CareflError:  # its maker has said why, in the client's own log
                if not self._plan.protected:
                    raise
                task = NoRecords(deferred.dimension)
            self._work = _work_of(self._plan, task, index, memory)
            self._work.members = self.members
        return self._work

    def _compute(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        return self._made().release(adapter, number, keys)

    def save(self) -> bytes:
        return self._made().save()

    def restore(self, saved: bytes) -> None:
        self._made().restore(saved)
