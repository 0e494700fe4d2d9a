"""What the ledgers in a run folder hold of its run: the one source of every stated epsilon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.privacy.accounting.accountant import epsilon
from carefl_secure.privacy.accounting.events import Event, event_from_json
from carefl_secure.privacy.ledger.entry import Entry, event_of
from carefl_secure.privacy.ledger.ledger import Ledger
from carefl_secure.privacy.ledger.statement import find_ledgers


@dataclass(frozen=True)
class RunSpending:
    """What one run has spent, by the ledger that holds most.

    ``charged`` counts the rounds that some ledger paid for, ``opened`` those that the server's
    ledger records as released. ``epsilon`` is infinite where a round had no noise.
    """

    charged: int
    opened: int
    epsilon: float


def charges_round(entry: Entry) -> bool:
    """Return whether an entry charges a round, or records it as unprotected."""
    return entry.kind == "spend" or entry.payload.get("unprotected") is True


def run_spending(folder: Path, delta: float) -> RunSpending:
    """Price what every ledger in a run folder holds of the run, all its stages.

    The run is the one that the server's ledger names. A ledger that was changed or torn is a
    LedgerError.
    """
    prices: dict[tuple[Event, ...], float] = {}
    charged = opened = 0
    largest = 0.0
    run = ""
    for file in find_ledgers(folder):
        entries = list(Ledger(file).entries())
        if not run:  # the server's ledger comes first, and holds nothing of other runs
            identity = entries[0].payload.get("identity", {}) if entries else {}
            run = str(identity.get("run", folder.resolve().name))
        else:
            entries = [one for one in entries if of_run(one, run)]
        charged = max(charged, sum(map(charges_round, entries)))
        opened = max(opened, sum(one.kind == "release" for one in entries))
        events = _events(entries)
        if events not in prices:  # most clients spend the same
            prices[events] = epsilon(events, delta)
        bare = any(one.payload.get("unprotected") is True for one in entries)
        largest = max(largest, math.inf if bare else prices[events])
    return RunSpending(charged, opened, largest)


def of_run(entry: Entry, run: str) -> bool:
    """Return whether an entry belongs to a run or to one of its stages."""
    name = str(entry.payload.get("run"))
    return name == run or name.startswith(f"{run}/")


def _events(entries: Sequence[Entry]) -> tuple[Event, ...]:
    counts: Counter[Event] = Counter()
    for entry in entries:
        if entry.kind == "spend":
            event = event_from_json(event_of(entry.payload))
            counts[event.times(1)] += event.count
    return tuple(event.times(count) for event, count in counts.items())
