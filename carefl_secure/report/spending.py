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
    rdp_epsilon,
)
from carefl_secure.privacy.accounting.accountant import coarse_epsilon
from carefl_secure.privacy.ledger.entry import event_of
from carefl_secure.report.run_record import RunRecord

__all__ = ["Accounts", "ClientAccount", "events_of", "settle"]

_MOST_EXACT = 8  # rounds that are each priced by the named account
_MOST_COARSE = 16
_TOLERANCE = 0.02  # of the coarse account


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
        An upper bound of epsilon after each released round.
    by_round_words : str
        How it was found.
    at_least : mapping of int to float
        What the account gives for that round or for the last one before it that was priced: no
        valid claim lies below it by more than ``tolerance``.
    tolerance : float
        How far ``at_least`` may lie above the exact account.
    survivors : mapping of int to int
        Clients in each released round, by the server's ledger.
    clients : tuple of ClientAccount
    """

    events: tuple[Event, ...]
    accountant: str
    epsilon: float | None
    by_round: Mapping[int, float]
    by_round_words: str
    at_least: Mapping[int, float]
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
    rounds = _Rounds({}, {}, "none holds", 0.0) if open_run else _by_round(until, delta)
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
        accountant=accountant_name(events, delta),
        epsilon=total,
        by_round=rounds.at_most,
        by_round_words=rounds.words,
        at_least=rounds.at_least,
        tolerance=rounds.tolerance,
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


@dataclass(frozen=True)
class _Rounds:
    at_most: Mapping[int, float]
    at_least: Mapping[int, float]
    words: str
    tolerance: float


def _by_round(until: Mapping[int, tuple[Event, ...]], delta: float) -> _Rounds:
    """Bound the price of the history up to every round, from both sides.

    A few rounds are priced each. Of many, some are, on a coarser grid; as a longer history never
    costs less, every other round costs at most the next one priced and at least the last. Renyi
    divergences, which are cheap, bound every round too. Nothing is interpolated.
    """
    numbers = list(until)
    if len(numbers) <= _MOST_EXACT:
        exact = {number: epsilon(events, delta) for number, events in until.items()}
        return _Rounds(exact, exact, "every round computed by the named accountant", 0.0)
    step = math.ceil(len(numbers) / _MOST_COARSE)
    chosen = numbers[::-1][::step][::-1]
    priced = {number: coarse_epsilon(until[number], delta) for number in chosen}
    at_most: dict[int, float] = {}
    following = math.inf
    for number in reversed(numbers):
        following = min(following, priced.get(number, math.inf))
        at_most[number] = following = min(following, _renyi(until[number], delta))
    at_least: dict[int, float] = {}
    before = 0.0
    for number in numbers:
        at_least[number] = before = max(before, min(priced.get(number, 0.0), at_most[number]))
    words = (
        f"{len(chosen)} of {len(numbers)} rounds computed on a coarser grid; every other one shows "
        "the next of them, or RDP where that is lower, which is an upper bound: a longer history "
        "never costs less"
    )
    ordered = {number: at_most[number] for number in numbers}
    return _Rounds(ordered, at_least, words, _TOLERANCE)


def _renyi(events: tuple[Event, ...], delta: float) -> float:
    return rdp_epsilon(events, delta)
