"""What earlier runs left in the clients' ledgers, and the noise that a further run then needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy import Event, Ledger, calibrate_noise, epsilon, event_from_json
from carefl_secure.privacy.ledger.entry import event_of

__all__ = ["History", "earlier_spends", "noise_after"]

History = tuple[Event, ...]


def earlier_spends(ledgers: Path, clients: int, run: str | None = None) -> frozenset[History]:
    """Read what the clients' ledgers hold of other runs.

    Parameters
    ----------
    ledgers : Path
        Folder of ``<index>.jsonl``; a ledger that does not exist yet is empty.
    clients : int
    run : str, optional
        A run whose own spends are left out, as it is being resumed.

    Returns
    -------
    frozenset of tuple of Event
        The different histories, each with equal events merged.

    Raises
    ------
    BudgetExceededError
        A ledger holds rounds without any noise: no further run keeps any limit.
    LedgerError
        A ledger cannot be trusted.
    """
    found: set[History] = set()
    for index in range(clients):
        path = ledgers / f"{index}.jsonl"
        counts: Counter[Event] = Counter()
        for entry in Ledger(path).entries() if path.is_file() else ():
            if run is not None and _within(str(entry.payload.get("run")), run):
                continue
            if entry.payload.get("unprotected") is True:
                raise BudgetExceededError(
                    f"{path} holds rounds that were released without any noise, so no limit can "
                    "be kept over all runs; leave privacy.max_epsilon out, or use other records"
                )
            if entry.kind == "spend":
                event = event_from_json(event_of(entry.payload))
                counts[event.times(1)] += event.count
        found.add(tuple(event.times(count) for event, count in counts.items()))
    return frozenset(found)


def _within(name: str, run: str) -> bool:
    """Tell whether a spend is of a run or of one of its stages."""
    return name == run or name.startswith(f"{run}/")


def noise_after(
    whole_run: Callable[[float], Event | Sequence[Event]],
    noise: float,
    limit: float,
    delta: float,
    earlier: frozenset[History],
) -> float:
    """Raise a noise multiplier until every history and a whole new run stay within a limit.

    Parameters
    ----------
    whole_run : callable
        Noise multiplier to the event of the whole new run, or to those of its stages.
    noise : float
        What the new run's own target needs; never less is returned.
    limit : float
        The most that a client's ledger may come to over all runs.
    delta : float
        For all runs together.
    earlier : frozenset of tuple of Event
        From `earlier_spends`.

    Returns
    -------
    float

    Raises
    ------
    BudgetExceededError
        No noise leaves room for the run. It says how much of the limit is left.

    Guarantees
    ----------
    With the returned noise every ledger has room for the whole run at the start, so no client has
    to refuse in the middle of it.
    """
    for history in sorted(earlier, key=repr):
        planned = whole_run(noise)
        events = planned if isinstance(planned, Sequence) else (planned,)
        if epsilon((*history, *events), delta) <= limit:
            continue
        spent = epsilon(history, delta)
        try:
            if spent >= limit:
                raise BudgetExceededError("nothing is left")
            noise = max(noise, calibrate_noise(whole_run, limit, delta, history=history))
        except (BudgetExceededError, ConfigError) as error:  # or no word holds so much noise
            raise BudgetExceededError(
                f"earlier runs spent epsilon {spent:.4g} of privacy.max_epsilon={limit:g} at delta "
                f"{delta:g}, so {max(0.0, limit - spent):.4g} is left, and no noise fits this run "
                "into it; raise privacy.max_epsilon, plan fewer rounds, or use other records"
            ) from error
    return noise
