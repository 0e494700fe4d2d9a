"""What a run costs, recomputed from its ledgers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carefl_secure.privacy import Entry, Event, accountant_name, epsilon
from carefl_secure.privacy.accounting.events import merged
from carefl_secure.privacy.ledger.entry import spent
from carefl_secure.report.run_record import RunRecord

_MOST_PRICED = 32  # rounds; a price takes some 0.1 s


@dataclass(frozen=True)
class ClientAccount:
    """What one client spent: ``paid`` rounds of this run at ``run_epsilon``.

    ``ledger_epsilon`` prices everything in its ledger, earlier runs too. Both are None where the
    ledger is broken.
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
        What they cost; infinity where a round had no noise, None where the server's ledger is
        broken.
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


def finite(value: float | None) -> float | None:
    """Return a number that can be shown, or None."""
    return value if value is not None and math.isfinite(value) else None


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
    total: float | None = None
    if not record.server.error:
        bare = open_run or any(one.unprotected for one in record.server.entries)
        total = math.inf if bare else epsilon(events, delta)
    rounds = _Rounds({}, {}, "none holds") if open_run else _by_round(until, delta)
    prices: dict[tuple[Event, ...], float] = {}

    def price(entries: Sequence[Entry]) -> float:
        key = merged(spent(entries))
        if key not in prices:
            prices[key] = epsilon(key, delta)
        return math.inf if any(one.unprotected for one in entries) else prices[key]

    return Accounts(
        events=events,
        accountant=accountant_name(events, delta),
        epsilon=total,
        by_round=rounds.exact,
        by_round_words=rounds.words,
        at_least=rounds.at_least,
        survivors=survivors,
        clients=tuple(
            ClientAccount(book.name, 0, None, None)
            if book.error
            else ClientAccount(
                book.name,
                sum(entry.charges_round for entry in book.of_run(record.run_id)),
                price(book.of_run(record.run_id)),
                price(book.entries),
            )
            for book in record.clients
        ),
        agreed=record.privacy.target_epsilon,
    )


@dataclass(frozen=True)
class _Rounds:
    exact: Mapping[int, float]
    at_least: Mapping[int, float]
    words: str


def _by_round(until: Mapping[int, tuple[Event, ...]], delta: float) -> _Rounds:
    """Price the history up to every round, or up to evenly spaced ones of many."""
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
    return _Rounds(exact, at_least, words)
