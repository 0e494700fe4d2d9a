"""What each adversary sees, and attacks that cannot be handed anything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import PrivacyError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.secagg.primitives.agreement import Agreement

Verdict = Literal["passed", "falsified", "measured", "skipped"]
"""``measured`` proves nothing either way; ``skipped``: nothing of the kind is promised."""

Figure = float | int | str | bool | None
V = TypeVar("V")
E = TypeVar("E")


@dataclass(frozen=True)
class Finding:
    """What one attack found."""

    attack: str
    check: str  # what was tried
    verdict: Verdict
    words: str  # a sentence for a person
    figures: Mapping[str, Figure]  # numbers


class Attack(ABC, Generic[V, E]):
    """One attack: a pure function of what its adversary sees.

    Whether it succeeded is judged elsewhere, by somebody who knows the truth; the truth is in no
    view. ``name`` is the attack's name in threat models, ``adversary`` says whose view it uses, and
    ``view`` is the only class of view that it accepts.
    """

    name: ClassVar[str]
    adversary: ClassVar[str]
    view: ClassVar[type]

    def __call__(self, view: V) -> E:
        """Attack a view; PrivacyError if it is another adversary's."""
        if type(view) is not self.view:
            raise PrivacyError(
                f"the attack {self.name!r} is one of {self.adversary} and sees a "
                f"{self.view.__name__}, not a {type(view).__name__}"
            )
        return self.attack(view)

    @abstractmethod
    def attack(self, view: V) -> E:
        """Do the work on a view that was checked."""

    @classmethod
    def skip(cls, check: str, words: str) -> Finding:
        """Return a finding that nothing of the kind is promised, and why."""
        return Finding(cls.name, check, "skipped", words, {})


@dataclass(frozen=True)
class Heard:
    """One message between the server and a party."""

    round: int
    client: int  # the party: clients first, then helpers
    from_client: bool
    action: str  # the message type, such as "train.masked"
    fields: Mapping[str, object]  # names to integers, bytes, and lists of them


@dataclass(frozen=True)
class TranscriptView:
    """What the server sees of a run: every message in order, and what is public anyway."""

    messages: tuple[Heard, ...]
    plan: RunPlan  # as agreed
    cohort: Cohort
    seed: int  # the run's, from its configuration

    @property
    def aggregation(self) -> str:
        """Name of the aggregation protocol."""
        return self.cohort.aggregation

    @cached_property
    def shape(self) -> Agreement:
        """The agreement of a round, which the lengths of its messages follow from."""
        if self.aggregation == "committee":
            return self.cohort.committee_parameters(self.plan, 1)
        if self.aggregation == "encrypted":
            return self.cohort.encrypted_parameters(self.plan, 1, bytes(32))
        return self.cohort.round_parameters(self.plan, 1)


@dataclass(frozen=True)
class MemberView:
    """What one member of a committee sees: the agreement, the messages to it and from it."""

    messages: tuple[Heard, ...]
    shape: Agreement


@dataclass(frozen=True)
class HolderView(MemberView):
    """What the holder of the decryption key sees: the agreement, its own messages both ways."""


@dataclass(frozen=True)
class ReleaseView:
    """What everybody in the run sees: the opened sum of each round, and the agreed plan."""

    sums: npt.NDArray[np.float64]  # [rounds, D], in units of the clipping norm
    noise: npt.NDArray[np.float64]  # [rounds], their planned standard deviation per coordinate, same unit
    sample_rate: float
    coordinates: npt.NDArray[np.int64]  # [canaries], where each possible canary, made by the attacker, would show
