"""What a run costs, computed anew from its ledgers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carefl_secure.privacy import (
    Entry,
    Event,
    accountant_name,
    epsilon,
    event_from_json,
    pld_epsilon,
)
from carefl_secure.privacy.accounting import has_pld
from carefl_secure.privacy.ledger_entry import event_of
from carefl_secure.report.run import RunRecord

__all__ = ["Accounts", "ClientAccount", "events_of", "settle"]

_COARSE = 1e-3
_MOST_LOSS_DISTRIBUTIONS = 40


@dataclass(frozen=True)
class ClientAccount:
    """What one client spent.

    Parameters
    ----------
    name : str
    paid : int
        Rounds of this run that it paid for.
    run_epsilon : float or None
        What these cost; None where its ledger is broken.
    ledger_epsilon : float or None
        What everything in its ledger costs, earlier runs too.
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
        Everything that counts: what the server's ledger paid for, equal events merged.
    accountant : str
    epsilon : float or None
        What they cost; infinity where a round went without noise, None where the server's ledger
        is broken.
    by_round : mapping of int to float
        Epsilon after each released round.
    tolerance : float
        How far ``by_round`` may lie above the exact account.
    survivors : mapping of int to int
        Clients in each released round, by the server's ledger.
    clients : tuple of ClientAccount
    """

    events: tuple[Event, ...]
    accountant: str
    epsilon: float | None
    by_round: Mapping[int, float]
    tolerance: float
    survivors: Mapping[int, int]
    clients: tuple[ClientAccount, ...]


def events_of(entries: Sequence[Entry]) -> list[Event]:
    """Return the events of all spends among some entries."""
    return [event_from_json(event_of(e.payload)) for e in entries if e.kind == "spend"]


def settle(record: RunRecord) -> Accounts:
    """Price everything that a run's ledgers hold.

    Parameters
    ----------
    record : RunRecord

    Returns
    -------
    Accounts

    Raises
    ------
    PrivacyError
        A spend cannot be priced.
    """
    delta = record.privacy.delta
    open_run = record.privacy.unit == "none"
    running: Counter[Event] = Counter()
    until: dict[int, tuple[Event, ...]] = {}
    survivors: dict[int, int] = {}
    for entry in record.server.entries:
        if entry.kind == "spend":
            event = event_from_json(event_of(entry.payload))
            running[event.times(1)] += event.count
        elif entry.kind == "release":
            number = int(entry.payload.get("round", -1))
            survivors[number] = int(entry.payload.get("survivors", 0))
            until[number] = _merged(running)
    events = _merged(running)
    total: float | None = None
    if not record.server.error:
        total = math.inf if open_run or _unprotected(record) else epsilon(events, delta)
    coarse = has_pld(events) and bool(events)
    by_round = {} if open_run else _by_round(until, delta, coarse)
    prices: dict[tuple[Event, ...], float] = {}

    def price(entries: Sequence[Entry]) -> float:
        counted: Counter[Event] = Counter()
        for event in events_of(entries):
            counted[event.times(1)] += event.count
        key = _merged(counted)
        if key not in prices:
            prices[key] = epsilon(key, delta)
        return math.inf if _any_unprotected(entries) else prices[key]

    return Accounts(
        events=events,
        accountant=accountant_name(events),
        epsilon=total,
        by_round=by_round,
        tolerance=0.02 if coarse else 0.0,
        survivors=survivors,
        clients=tuple(
            ClientAccount(book.name, 0, None, None)
            if book.error
            else ClientAccount(
                book.name,
                sum(_paid(entry) for entry in book.of_run(record.run_id)),
                price(book.of_run(record.run_id)),
                price(book.entries),
            )
            for book in record.clients
        ),
    )


def _paid(entry: Entry) -> bool:
    return entry.kind == "spend" or entry.payload.get("unprotected") is True


def _any_unprotected(entries: Sequence[Entry]) -> bool:
    return any(entry.payload.get("unprotected") is True for entry in entries)


def _unprotected(record: RunRecord) -> bool:
    return _any_unprotected(record.server.entries)


def _merged(counts: Counter[Event]) -> tuple[Event, ...]:
    return tuple(event.times(count) for event, count in counts.items())


def _by_round(
    until: Mapping[int, tuple[Event, ...]], delta: float, coarse: bool
) -> dict[int, float]:
    """Price the history up to every round; by a coarser grid, and not all, where that is dear."""
    if not coarse:
        return {number: epsilon(events, delta) for number, events in until.items()}
    numbers = list(until)
    step = max(1, math.ceil(len(numbers) / _MOST_LOSS_DISTRIBUTIONS))
    chosen = numbers[::-1][::step][::-1]
    return {number: pld_epsilon(until[number], delta, grid=_COARSE) for number in chosen}
