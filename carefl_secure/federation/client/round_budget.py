"""How a round is charged to a ledger, the same for the server and for every client."""

from __future__ import annotations

import math

from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.ledger.runs import count_rounds


class RoundBudget:
    """A ledger together with the plan whose rounds are charged to it.

    ``limit`` is the most the whole ledger, earlier runs included, may come to; the plan's target by
    default. Without privacy nothing is charged, and every round is recorded as unprotected.
    """

    def __init__(self, ledger: Ledger, plan: RunPlan, cohort: Cohort, limit: float | None = None) -> None:
        privacy = plan.privacy
        self._ledger, self._event, self._delta = ledger, plan.event, privacy.delta
        self._run = cohort.run.decode(errors="backslashreplace")
        self._payload = {"run": self._run, "planned": privacy.rounds, "unit": privacy.unit, "trust": privacy.trust}
        self._limit = privacy.limit if limit is None else limit

    def check(self) -> None:
        """Raise what `charge` would raise for one round more; write nothing."""
        if self._event is not None:
            self._ledger.guard(self._event, self._limit, self._delta, self._payload)

    def charge(self, number: int) -> None:
        """Write one round to the ledger, on disk, before anything of it is released.

        Raises BudgetExceededError, and writes nothing, when it would overspend or the rounds of the plan are all
        charged, in however many attempts; LedgerError when the ledger cannot be trusted or written.
        """
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
        return count_rounds(self._ledger.entries(), self._run)
