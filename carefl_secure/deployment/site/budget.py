"""What a site has spent, on one corpus and on all of them, held against its policy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from carefl_secure.deployment.provisioning.policy import Policy
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.errors import BudgetExceededError, LedgerError
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Event, Ledger
from carefl_secure.privacy.accounting.composition import filtered_epsilon
from carefl_secure.privacy.ledger.entry import count_rounds


def corpus_ledger(bundle: SiteBundle) -> Path:
    """Return the ledger of a site's corpus, the same however the path of its folder is written."""
    corpus = "share" if bundle.data is None else os.path.normpath(bundle.data)
    name = hashlib.sha256(corpus.encode()).hexdigest()[:16]
    return bundle.path / "ledgers" / f"{name}.jsonl"


class SiteBudgets:
    """The budgets of one site in the eyes of one run.

    ``policy`` gives the limits per corpus and in total, ``folder`` holds one ledger per corpus, and
    ``ledger`` is that of the run's corpus, in the folder or elsewhere. The delta of ``plan`` prices
    every ledger; ``cohort`` gives the run's name.

    Guarantees
    ----------
    ``max_epsilon_total`` bounds what a person in all corpora loses, at twice the delta of the plan, although
    each run may be chosen by looking at earlier ones of any corpus: all sums of all corpora go through
    one Renyi filter (`filtered_epsilon`). A sum of the corpora's own prices would not be such a bound.
    Runs without noise have no price; whether they may take place is the policy's ``allow_unprotected``.
    """

    def __init__(self, policy: Policy, folder: Path, ledger: Ledger, plan: RunPlan, cohort: Cohort) -> None:
        self._policy, self._folder, self._ledger = policy, folder, ledger
        self._plan, self._cohort = plan, cohort
        self._known: dict[Path, tuple[tuple[int, int], list[Event]]] = {}

    def check_rollback(self, charged: Mapping[str, int]) -> None:
        """Refuse ledgers with fewer rounds than ``charged``, by run; the `LedgerError` is for the site's own log."""
        ledgers = [self._ledger, *map(Ledger, sorted(self._folder.glob("*.jsonl")))]
        entries = [ledger.entries() for ledger in ledgers if ledger.path.exists()]
        for run, rounds in charged.items():
            held = max((count_rounds(one, run) for one in entries), default=0)
            if held < rounds:
                raise LedgerError(
                    f"rollback: this site took part in {rounds} rounds of run {run}, and its ledgers in "
                    f"{self._folder} hold {held}: an older copy was restored, or one was removed. Restore the "
                    "latest copy; without it these rounds would be spent again"
                )

    def check_run(self) -> None:
        """Refuse a whole run before its first round; rounds already paid do not count twice.

        Raises `BudgetExceededError`, and `LedgerError` when a ledger cannot be trusted.
        """
        paid = RoundBudget(self._ledger, self._plan, self._cohort).charged()
        self._check(max(0, self._plan.privacy.rounds - paid))

    def check_round(self) -> None:
        """Refuse one round more as `check_run` does: other ledgers may have grown."""
        self._check(1)

    def _check(self, rounds: int) -> None:
        event = self._plan.event
        if event is None:
            return
        limit = self._policy.max_epsilon_per_corpus
        budget = RoundBudget(self._ledger, self._plan, self._cohort, limit)
        after, more = budget.after(rounds), budget.further(rounds)
        if after > limit:
            raise BudgetExceededError(
                f"the run would bring this corpus to epsilon {after:.4g}, above max_epsilon_per_corpus of {limit:g}"
            )
        if elsewhere := self._elsewhere():
            mine = [*self._ledger.events(), *([more] if more else [])]
            after = filtered_epsilon([], [*elsewhere, *mine], self._policy.max_epsilon_total, self._plan.privacy.delta)
        if after > self._policy.max_epsilon_total:
            raise BudgetExceededError(
                f"the run would take the site over max_epsilon_total of {self._policy.max_epsilon_total:g}"
            )

    def _elsewhere(self) -> list[Event]:
        """Return what the other ledgers hold, each read anew only when its file has changed."""
        mine = self._ledger.path.resolve()
        for path in sorted(self._folder.glob("*.jsonl")):
            seen = path.stat()
            state = (seen.st_mtime_ns, seen.st_size)
            if path.resolve() != mine and (path not in self._known or self._known[path][0] != state):
                self._known[path] = state, Ledger(path).events()
        return [event for _, events in self._known.values() for event in events]
