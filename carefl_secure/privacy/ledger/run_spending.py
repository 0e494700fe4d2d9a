"""What the ledgers in a run folder hold of its run: the one source of every stated epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.privacy.accounting.accountant import epsilon
from carefl_secure.privacy.accounting.events import Event, merged
from carefl_secure.privacy.ledger.entry import spent
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
            entries = [one for one in entries if one.of_run(run)]
        charged = max(charged, sum(one.charges_round for one in entries))
        opened = max(opened, sum(one.kind == "release" for one in entries))
        events = merged(spent(entries))
        if events not in prices:  # most clients spend the same
            prices[events] = epsilon(events, delta)
        bare = any(one.unprotected for one in entries)
        largest = max(largest, math.inf if bare else prices[events])
    return RunSpending(charged, opened, largest)
