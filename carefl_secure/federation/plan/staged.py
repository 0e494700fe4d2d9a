"""One promise for a run in stages: all plans fixed at once, with one noise multiplier."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.ledger_history import History, noise_after
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Event, PrivacyPlan, calibrate_noise, epsilon

__all__ = ["Stage", "StagedPlan", "plan_stages"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as its rounds need to know it.

    Parameters
    ----------
    name : str
        Its number and its label space: ``2-compound``.
    number : int
        From 1.
    offset : int
        Rounds planned before it; its own are numbered on from there.
    paper : mapping
        What ``plan.json`` of the whole run holds.
    earlier : tuple of ndarray of float32
        The adapters that the stages before it ended with.
    """

    name: str
    number: int
    offset: int
    paper: Mapping[str, Any]
    earlier: tuple[NDArray[np.float32], ...] = field(default=())

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the whole plan, hexadecimal."""
        return hashlib.sha256(_canonical(self.paper)).hexdigest()

    def state(self) -> dict[str, NDArray[np.float32] | int]:
        """Return what a checkpoint says of it."""
        kept = {f"earlier.{place}": vector for place, vector in enumerate(self.earlier, 1)}
        return {"stage": self.number, **kept}


@dataclass(frozen=True)
class StagedPlan:
    """The plans of all stages, fixed before the first round.

    Parameters
    ----------
    names : tuple of str
        As in `Stage`.
    plans : tuple of RunPlan
        Each states its own rounds and records, and the noise and target of the whole run.
    """

    names: tuple[str, ...]
    plans: tuple[RunPlan, ...]

    @property
    def privacy(self) -> PrivacyPlan:
        """The promise of the whole run: that of the last stage, over all rounds."""
        rounds = sum(plan.privacy.rounds for plan in self.plans)
        return dataclasses.replace(self.plans[-1].privacy, rounds=rounds)

    def to_json(self) -> dict[str, Any]:
        """Return the whole as JSON values.

        It reads as the plan of the last stage over all rounds; ``stages`` holds each stage's own.
        """
        last = self.plans[-1]
        stages = [
            {"name": name, **plan.to_json()}
            for name, plan in zip(self.names, self.plans, strict=True)
        ]
        return {**last.to_json(), "privacy": self.privacy.to_json(), "stages": stages}

    def stage(self, place: int, earlier: Sequence[NDArray[np.float32]]) -> Stage:
        """Return what the rounds of one stage need to know."""
        offset = sum(plan.privacy.rounds for plan in self.plans[:place])
        return Stage(self.names[place], place + 1, offset, self.to_json(), tuple(earlier))


def plan_stages(
    names: Sequence[str],
    requests: Sequence[PlanRequest],
    *,
    limit: float | None = None,
    earlier: frozenset[History] = frozenset(),
) -> StagedPlan:
    """Fix privacy, encoding and noise of all stages at once.

    Parameters
    ----------
    names : sequence of str
        Of the stages.
    requests : sequence of PlanRequest
        One for each stage; unit, target and delta are the same in all, and ``target_epsilon`` is
        for all stages together.
    limit, earlier
        As for `plan_run`.

    Returns
    -------
    StagedPlan

    Raises
    ------
    ConfigError
        A value is out of range, or the stages differ where they must not.
    BudgetExceededError
        No amount of noise reaches the target, or the limit after what was spent earlier.

    Guarantees
    ----------
    All rounds of all stages cost at most ``target_epsilon`` at ``delta`` when they are composed,
    as if every record were in every stage: sequential composition, which holds whether the stages
    share records or not. The noise of every stage is fixed before the first round.
    """
    first = requests[0]
    shared = ("unit", "target_epsilon", "delta")
    if any(getattr(one, name) != getattr(first, name) for one in requests for name in shared):
        raise ConfigError(f"all stages need the same {', '.join(shared)}: the promise is one")
    target, delta = first.target_epsilon, first.delta
    if first.unit == "none":
        return StagedPlan(tuple(names), tuple(plan_run(one) for one in requests))
    if target is None:
        raise ConfigError("stages under privacy need target_epsilon (8 is usual)")

    def plans(noise: float) -> tuple[RunPlan, ...]:
        return tuple(plan_run(one, noise_multiplier=noise) for one in requests)

    def whole_run(noise: float) -> list[Event]:
        return _events(plans(noise))

    noise = calibrate_noise(whole_run, target, delta)
    if limit is not None:
        noise = noise_after(whole_run, noise, limit, delta, earlier)
    found = plans(noise)
    price = epsilon(_events(found), delta)
    if price > target:
        raise PrivacyError(f"the stages would spend epsilon {price:.6g} of {target:g}; report this")
    return StagedPlan(tuple(names), found)


def _events(plans: Sequence[RunPlan]) -> list[Event]:
    return [
        plan.event.times(plan.event.count * plan.privacy.rounds)
        for plan in plans
        if plan.event is not None
    ]


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
