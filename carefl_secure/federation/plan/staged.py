"""The agreement behind a whole run: the plans of its stages, of which a plain run has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Event, PrivacyPlan
from carefl_secure.strict_json import canonical_hash


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as its rounds need to know it.

    ``agreement`` is what ``plan.json`` of the whole run holds. ``name`` is number and label space, such as
    ``2-compound``, empty where the run has one stage. ``number`` counts from 1; ``offset`` rounds are planned before
    it, and its own are numbered on. ``earlier`` are the adapters, float32, that the stages before it ended with.
    """

    plan: RunPlan
    agreement: Mapping[str, Any]
    name: str = ""
    number: int = 1
    offset: int = 0
    earlier: tuple[NDArray[np.float32], ...] = field(default=())

    @classmethod
    def only(cls, plan: RunPlan) -> Stage:
        """Return the one stage of a run under a single plan."""
        return StagedPlan(("",), (plan,)).stage(0)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the whole plan, hexadecimal."""
        return canonical_hash(self.agreement).hex()

    def state(self) -> dict[str, NDArray[np.float32] | int]:
        """Return what a checkpoint says of it."""
        kept = {f"earlier.{place}": vector for place, vector in enumerate(self.earlier, 1)}
        return {"stage": self.number, **kept}


@dataclass(frozen=True)
class StagedPlan:
    """The plans of all stages, fixed before the first round; ConfigError when their promises differ."""

    names: tuple[str, ...]
    plans: tuple[RunPlan, ...]

    def __post_init__(self) -> None:
        if not all(one.privacy.same_promise(self.plans[0].privacy) for one in self.plans):
            raise ConfigError(
                "all stages need the same unit, trust, mechanism, epsilon, delta and max_colluders: the promise is one"
            )

    @property
    def privacy(self) -> PrivacyPlan:
        """The promise of the whole run: that of the last stage, over all rounds."""
        rounds = sum(plan.privacy.rounds for plan in self.plans)
        return dataclasses.replace(self.plans[-1].privacy, rounds=rounds)

    @property
    def whole(self) -> RunPlan:
        """The plan of the last stage over all rounds."""
        return dataclasses.replace(self.plans[-1], privacy=self.privacy)

    @property
    def events(self) -> list[Event]:
        """What all rounds of all stages release; empty without privacy."""
        return [plan.event.times(plan.event.count * plan.privacy.cycles) for plan in self.plans if plan.event]

    def to_json(self) -> dict[str, Any]:
        """Return the last stage's plan over all rounds as JSON, named stages' own in ``stages``."""
        whole = {**self.plans[-1].to_json(), "privacy": self.privacy.to_json()}
        if self.names == ("",):
            return whole
        each = zip(self.names, self.plans, strict=True)
        return {**whole, "stages": [{"name": name, **plan.to_json()} for name, plan in each]}

    @classmethod
    def from_json(cls, value: Any, *, check_event: bool = True) -> StagedPlan:
        """Return the agreement that `to_json` gave; ConfigError when it cannot be read, or its parts disagree."""
        if not isinstance(value, Mapping):
            raise ConfigError("a plan is a JSON object")
        listed = value.get("stages", [{"name": "", **value}])
        if (
            not isinstance(listed, list)
            or not listed
            or not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in listed)
        ):
            raise ConfigError("the plan's stages must be a list of plans with a name each")
        plans = [{key: part for key, part in one.items() if key != "name"} for one in listed]
        found = cls(
            tuple(one["name"] for one in listed),
            tuple(RunPlan.from_json(one, check_event=check_event) for one in plans),
        )
        stated = {key: part for key, part in value.items() if key != "stages"}
        if RunPlan.from_json(stated, check_event=check_event).privacy != found.privacy:
            raise ConfigError("the plan states a whole that its stages do not make up")
        return found

    def stage(self, place: int, earlier: Sequence[NDArray[np.float32]] = ()) -> Stage:
        """Return what the rounds of one stage need to know."""
        offset = sum(plan.privacy.rounds for plan in self.plans[:place])
        name, plan = self.names[place], self.plans[place]
        return Stage(plan, self.to_json(), name, place + 1, offset, tuple(earlier))
