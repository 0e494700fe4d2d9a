"""What one client computes in a round, and the first kind of it: a sum of clipped gradients."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import CareflError, ConfigError, NonFiniteError
from carefl_secure.federation.local_update.task import LocalTask, PersonTask
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource, KeyStream
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.sampling import sample_bound

Adapter = NDArray[np.float32]
Vector = NDArray[np.float64]
Members = Callable[[int, int], NDArray[np.int64]]
"""Number of records and of a round to the records of that round's group, ascending."""

_LOG = logging.getLogger(__name__)

# What a task may fail with because of a record; a fault of the program, such as a name that does
# not exist, still ends the run.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    CareflError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class LocalWork(ABC):
    """One client's computation, under one plan."""

    members: Members | None = None

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan

    def release(self, adapter: NDArray[np.float32], number: int, keys: KeySource) -> NDArray[np.float64]:
        """Return the vector of one round, shape [D], at the adapter, shape [D].

        Without privacy, raises what the task raises; NonFiniteError when the vector is not finite.

        Guarantees
        ----------
        In a protected run a task that fails, or whose vector is not finite, gives zeros. Neither an
        error nor a missing reply then tells about a record; only the client's own log does.
        """
        vector = self._contained(lambda: self._compute(adapter, number, keys), number)
        if not np.isfinite(vector).all():
            raise NonFiniteError(
                "what this client computed holds NaN or infinity; lower the learning rate or look at its records"
            )
        return vector

    def _contained(self, compute: Callable[[], NDArray[np.float64]], number: int) -> NDArray[np.float64]:
        """Return what ``compute`` returns; in a protected run zeros where it fails."""
        if not self._plan.protected:
            return compute()
        reason = "NaN or infinity"
        try:
            vector = compute()
            if np.isfinite(vector).all():
                return vector
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {error}"
        _LOG.warning("round %d: the local task failed, so noise alone goes out: %s", number, reason)
        return np.zeros(self._plan.encoding.dimension)

    @abstractmethod
    def _compute(self, adapter: NDArray[np.float32], number: int, keys: KeySource) -> NDArray[np.float64]:
        """Return the vector of one round; it may raise."""

    def save(self) -> bytes:
        """Return what the next round needs besides plan and records; empty for most."""
        return b""

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned."""
        del saved


class GradientSum(LocalWork):
    """The clipped gradients of a Poisson sample, added up: a share of one step of DP-SGD.

    Guarantees
    ----------
    One unit more or less (a record, or a person where that is the unit) moves the vector by
    ``plan.privacy.sensitivity`` at most, and enters it with probability ``event_rate`` at most,
    unless a sample is longer than its bound (`sample_bound`), which the event's ``beta`` covers. Under banded noise a
    record enters rounds of its group alone, given by ``members``, each with probability ``round_rate`` at most.
    """

    def __init__(self, plan: RunPlan, task: LocalTask) -> None:
        super().__init__(plan)
        self._task = task

    def _compute(self, adapter: Adapter, number: int, keys: KeySource) -> Vector:
        privacy, task = self._plan.privacy, self._task
        whole = privacy.unit == "person" and privacy.records_per_person is None
        if whole and isinstance(task, PersonTask):
            drawn = truncated_sample(task.persons, privacy.sample_rate, keys)
            return task.clipped_person_sum(adapter, drawn, number)
        if privacy.correlation is not None:
            if self.members is None:
                raise ConfigError("banded noise needs the groups of the client's records")
            group = self.members(task.records, number)
            of_group = poisson_sample(len(group), privacy.round_rate, KeyStream(keys.key("sample")))
            drawn = group[of_group][: sample_bound(task.records, privacy.sample_rate)]
            return task.clipped_sum(adapter, drawn, number)
        drawn = truncated_sample(task.records, privacy.sample_rate, keys, privacy.records_per_person or 1)
        return task.clipped_sum(adapter, drawn, number)


def truncated_sample(count: int, sample_rate: float, keys: KeySource, most_each: int = 1) -> NDArray[np.int64]:
    """Draw a Poisson sample with a fresh key and leave out what is beyond its bound."""
    drawn = poisson_sample(count, sample_rate, KeyStream(keys.key("sample")))
    return drawn[: sample_bound(count, sample_rate, most_each)]
