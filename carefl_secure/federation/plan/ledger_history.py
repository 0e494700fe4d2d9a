"""What earlier runs left in the clients' ledgers, and the noise that a further run then needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy import Event, Ledger, calibrate_noise, epsilon
from carefl_secure.privacy.accounting.adaptive_filter import filtered_epsilon
from carefl_secure.privacy.ledger.runs import split_runs

Events = tuple[Event, ...]
History = tuple[Events, Events]
"""Events of a ledger's first run, with its whole plan, and of all later runs."""

_NOTHING = 1e-3  # of the limit: what is left below it is of no use to any run


def earlier_spends(ledgers: Path, clients: int, run: str | None = None) -> frozenset[History]:
    """Return the different histories of other runs in the clients' ledgers.

    ``ledgers`` is a folder of ``<index>.jsonl``; a missing ledger is empty. The spends of ``run``, which is being
    resumed, are left out. BudgetExceededError is raised where a ledger holds rounds without any noise, as no further
    run keeps any limit; LedgerError where one cannot be trusted.
    """
    found: set[History] = set()
    for index in range(clients):
        path = ledgers / f"{index}.jsonl"
        kept = []
        for entry in Ledger(path).entries() if path.is_file() else ():
            if run is not None and entry.of_run(run):
                continue
            if entry.unprotected:
                raise BudgetExceededError(
                    f"{path} holds rounds that were released without any noise, so no limit can "
                    "be kept over all runs; leave privacy.max_epsilon out, or use other records"
                )
            kept.append(entry)
        first, later = split_runs(kept, another=True)
        found.add((tuple(first), tuple(later)))
    return frozenset(found)


def noise_after(
    whole_run: Callable[[float], Event | Sequence[Event]],
    noise: float,
    limit: float,
    delta: float,
    earlier: frozenset[History],
) -> float:
    """Raise a noise multiplier until every history and a whole new run stay within a limit.

    ``whole_run`` leads from a noise multiplier to the event of the whole new run, or to those of its stages. ``noise``
    is what its own target needs; never less is returned. ``limit`` is the most epsilon that a client's ledger may come
    to over all runs, at ``delta`` for all of them.

    Guarantees
    ----------
    With the returned noise every ledger has room for the whole run at the start, so no client has
    to refuse in the middle of it. BudgetExceededError when no noise leaves room.
    """
    for first, later in sorted(earlier, key=repr):

        def price(events: Sequence[Event], delta: float, first: Events = first, later: Events = later) -> float:
            if not first:
                return epsilon(events, delta)
            return filtered_epsilon(first, (*later, *events), limit, delta)

        planned = whole_run(noise)
        if price(planned if isinstance(planned, Sequence) else (planned,), delta) <= limit:
            continue
        spent = filtered_epsilon(first, later, limit, delta)
        try:
            if spent >= limit * (1.0 - _NOTHING):
                raise BudgetExceededError("nothing is left")
            noise = max(noise, calibrate_noise(whole_run, limit, delta, price=price))
        except (BudgetExceededError, ConfigError) as error:  # or no word holds so much noise
            raise BudgetExceededError(
                f"earlier runs spent epsilon {spent:.4g} of privacy.max_epsilon={limit:g} at delta "
                f"{delta:g}, so {max(0.0, limit - spent):.4g} is left, and no noise fits this run "
                "into it; raise privacy.max_epsilon, plan fewer rounds, or use other records"
            ) from error
    return noise
