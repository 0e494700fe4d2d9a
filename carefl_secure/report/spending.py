"""What a run costs, recomputed from its ledgers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from carefl_secure.privacy import Event, accountant_name, epsilon
from carefl_secure.privacy.accounting.events import merged
from carefl_secure.privacy.ledger.entry import spent
from carefl_secure.privacy.ledger.statement import price
from carefl_secure.report.run_record import RunRecord

_MOST_PRICED = 32  # rounds; a price takes some 0.1 s


@dataclass(frozen=True)
class ClientAccount:
    """What one client spent: ``paid`` rounds of this run at ``run_epsilon``.

    ``ledger_epsilon`` prices everything in its ledger, earlier runs too. Both are None where the ledger is broken.
    """

    name: str
    paid: int
    run_epsilon: float | None
    ledger_epsilon: float | None


@dataclass(frozen=True)
class Accounts:
    """What the run costs, round by round, and what each client spent.

    Parameters
    ----------
    events : tuple of Event
        What the server's ledger paid for, equal events merged.
    epsilon : float or None
        What they cost; infinity where a round had no noise, None where the server's ledger is broken.
    by_round, by_round_words : mapping of int to float, str
        Epsilon after each released round that was priced, by the named accountant; which these are.
    at_least : mapping of int to float
        Epsilon of the last priced round up to each one: no valid claim is below it.
    survivors : mapping of int to int
        Clients in each released round, by the server's ledger.
    agreed : float or None
        The limit that the plan was made for.
    """

    events: tuple[Event, ...]
    accountant: str
    epsilon: float | None
    by_round: Mapping[int, float]
    by_round_words: str
    at_least: Mapping[int, float]
    survivors: Mapping[int, int]
    clients: tuple[ClientAccount, ...]
    agreed: float | None = None

    @property
    def largest(self) -> float | None:
        """The largest epsilon that any ledger holds for this run: the figure that is stated."""
        found = [self.epsilon, *(client.run_epsilon for client in self.clients)]
        return max((price for price in found if price is not None), default=None)


def settle(record: RunRecord) -> Accounts:
    """Price everything that a run's ledgers hold; PrivacyError where a spend cannot be priced."""
    delta = record.privacy.delta
    open_run = record.privacy.unit == "none"
    events: tuple[Event, ...] = ()
    until: dict[int, tuple[Event, ...]] = {}
    survivors: dict[int, int] = {}
    for entry in record.server.entries:
        if entry.kind == "spend":
            events = merged((*events, *spent([entry])))
        elif entry.kind == "release":
            number = int(entry.payload.get("round", -1))
            survivors[number] = int(entry.payload.get("survivors", 0))
            until[number] = events
    total = None if record.server.error else math.inf if open_run else price(record.server.entries, delta)
    exact, at_least, words = ({}, {}, "none holds") if open_run else _by_round(until, delta)
    return Accounts(
        events=events,
        accountant=accountant_name(events, delta),
        epsilon=total,
        by_round=exact,
        by_round_words=words,
        at_least=at_least,
        survivors=survivors,
        clients=tuple(
            ClientAccount(book.name, 0, None, None)
            if book.error
            else ClientAccount(
                book.name,
                sum(entry.charges_round for entry in book.of_run(record.run_id)),
                price(book.of_run(record.run_id), delta),
                price(book.entries, delta),
            )
            for book in record.clients
        ),
        agreed=record.privacy.target_epsilon,
    )


def _by_round(until: Mapping[int, tuple[Event, ...]], delta: float) -> tuple[dict[int, float], dict[int, float], str]:
    """Price the history up to every round, or up to evenly spaced ones of many; see `Accounts`."""
    numbers = list(until)
    step = max(1, math.ceil(len(numbers) / _MOST_PRICED))
    chosen = {*numbers[:1], *numbers[::-1][::step]}
    exact = {number: epsilon(until[number], delta) for number in numbers if number in chosen}
    at_least: dict[int, float] = {}
    before = 0.0
    for number in numbers:
        at_least[number] = before = max(before, exact.get(number, 0.0))
    words = "every round priced by the named accountant"
    if len(exact) < len(numbers):
        words = f"{len(exact)} of {len(numbers)} rounds priced by the named accountant"
    return exact, at_least, words
