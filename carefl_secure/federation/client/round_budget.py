"""How a round is charged to a ledger, the same for the server and for every client."""

from __future__ import annotations

import math

from carefl_secure.errors import BudgetExceededError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Ledger

__all__ = ["RoundBudget"]


class RoundBudget:
    """A ledger together with the plan whose rounds are charged to it.

    ``limit`` is the most the whole ledger, earlier runs included, may come to; the plan's target by
    default. Without privacy nothing is charged, and every round is recorded as unprotected.
    """

    def __init__(
        self, ledger: Ledger, plan: RunPlan, cohort: Cohort, limit: float | None = None
    ) -> None:
        target = plan.privacy.target_epsilon
        self._ledger = ledger
        self._event = plan.event
        self._delta = plan.privacy.delta
        self._rounds = plan.privacy.rounds
        self._run = cohort.run.decode(errors="backslashreplace")
        self._payload = {
            "run": self._run,
            "planned": plan.privacy.rounds,
            "unit": plan.privacy.unit,
            "trust": plan.privacy.trust,
        }
        self._limit = limit if limit is not None else math.inf if target is None else target

    def check(self) -> None:
        """Raise BudgetExceededError, and write nothing, when one more round would overspend."""
        if self._event is not None:
            self._ledger.guard(self._event, self._limit, self._delta, self._payload)

    def charge(self, number: int) -> None:
        """Write one round to the ledger, on disk, before anything of it is released.

        Raises BudgetExceededError, and writes nothing, when it would overspend or the rounds of
        the plan are all charged, in however many attempts; LedgerError when the ledger cannot be
        trusted or written.
        """
        if self._event is not None and self.charged() >= self._rounds:
            raise BudgetExceededError(
                f"all {self._rounds} rounds of the agreed plan are charged already; nothing was "
                "released: agree on another run"
            )
        entry = {**self._payload, "round": number}
        if self._event is None:
            self._ledger.append("note", {**entry, "unprotected": True})
        else:
            self._ledger.spend(self._event, self._limit, self._delta, entry)

    def record_release(self, number: int, survivors: int) -> None:
        """Note that a round was opened."""
        self._ledger.append("release", {"run": self._run, "round": number, "survivors": survivors})

    def epsilon(self) -> float:
        """Return what the whole ledger costs; infinity without privacy."""
        return math.inf if self._event is None else self._ledger.epsilon(self._delta)

    def after(self, rounds: int) -> float:
        """Return what the ledger comes to with more rounds, for comparison with the limit."""
        if self._event is None or rounds == 0:
            return self.epsilon()
        more = self._event.times(self._event.count * rounds)
        return self._ledger.filtered_epsilon(more, self._limit, self._delta, self._payload)

    def charged(self) -> int:
        """Return how many rounds of this run were charged."""
        return sum(
            entry.payload.get("run") == self._run
            and (entry.kind == "spend" or entry.payload.get("unprotected") is True)
            for entry in self._ledger.entries()
        )
