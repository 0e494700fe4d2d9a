"""What a run costs, recomputed from its ledgers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from carefl_secure.privacy import Event, accountant_name, epsilon
from carefl_secure.privacy.accounting.accountant import epsilon_by_delta
from carefl_secure.privacy.accounting.composition import over_disjoint_clients, over_shared_persons, with_survivors
from carefl_secure.privacy.accounting.events import merged
from carefl_secure.privacy.ledger.entry import spent
from carefl_secure.privacy.ledger.statement import price
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Tuning, WhatIf
from carefl_secure.rounding import finite, round_up

_MOST_PRICED = 32  # rounds; a price takes some 0.1 s


@dataclass(frozen=True)
class ClientAccount:
    """What one client spent; both figures are None where its ledger is broken."""

    name: str
    paid: int  # rounds of this run
    run_epsilon: float | None
    ledger_epsilon: float | None  # of everything in its ledger, earlier runs too


@dataclass(frozen=True)
class Accounts:
    """What the run costs, round by round, and what each client spent."""

    events: tuple[Event, ...]  # what the server's ledger paid for, equal events merged
    accountant: str
    epsilon: float | None  # of these; infinity where a round had no noise, None where the server's ledger is broken
    by_round: Mapping[int, float]  # epsilon after each released round that was priced, by the named accountant
    by_round_words: str  # which rounds these are
    at_least: Mapping[int, float]  # epsilon of the last priced round up to each one: no valid claim is below it
    survivors: Mapping[int, int]  # clients in each released round, by the server's ledger
    clients: tuple[ClientAccount, ...]
    agreed: float | None = None  # the limit that the plan was made for

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


def tuning_runs(record: RunRecord) -> int | None:
    """Return how many runs were made to choose settings; None where they are uncounted."""
    stated = record.setting("privacy.tuning_runs")
    counted = isinstance(stated, int) and not isinstance(stated, bool) and stated >= 0
    return stated if counted else None


def tuning_part(record: RunRecord, accounts: Accounts, held: bool) -> Tuning:
    """Say whether runs made to choose settings are included in epsilon.

    For a fixed number n of them, n runs that each released no more than this one are composed with
    it in one account. (Choosing among a *random* number of runs has its own account, Papernot and
    Steinke, ICLR 2022; a number fixed beforehand does not fall under it.)
    """
    runs, whole = tuning_runs(record), None
    if runs is None:
        sentence = (
            "Tuning is uncounted. Runs made to choose settings, if there were any on these records, are NOT in this "
            "epsilon. Ten such runs can double it; state their number in privacy.tuning_runs."
        )
    elif runs == 0:
        whole = accounts.epsilon if held else None
        sentence = "The configuration states that no other run on these records chose settings."
    elif not held:
        sentence = f"{runs} runs were made to choose settings; no epsilon holds."
    else:
        whole = epsilon(accounts.events * (runs + 1), record.privacy.delta)
        sentence = (
            f"{runs} runs were made on these records to choose settings. Together with them this run comes to epsilon "
            f"{round_up(whole)} at the same delta: {runs + 1} runs composed in one account, each released no more "
            "than this one, and their number was fixed beforehand."
        )
    return Tuning(runs=runs, counted=runs is not None, epsilon=finite(whole), sentence=sentence)


def what_if(record: RunRecord, accounts: Accounts) -> list[WhatIf]:
    """Price a run whose promise holds under other conditions, each stated with its figure."""
    found: list[WhatIf] = []
    delta = record.privacy.delta
    spent = [c.run_epsilon for c in accounts.clients if c.run_epsilon is not None]
    if spent:
        apart = over_disjoint_clients(spent, delta)
        found.append(_case("no unit at two clients", apart.epsilon, delta, apart.conditions))
    if len(spent) > 1 and record.privacy.correlation is not None:
        found.append(_case("one unit at two clients", None, delta, ("no figure is proved for banded noise",)))
    elif len(spent) > 1 and record.privacy.unit != "client":
        pair = over_shared_persons(accounts.events, 2, delta)
        found.append(_case("one unit at two clients", pair.epsilon, pair.delta, pair.conditions))
    both = [
        (c.ledger_epsilon, c.ledger_epsilon - c.run_epsilon)
        for c in accounts.clients
        if c.ledger_epsilon is not None and c.run_epsilon is not None and c.ledger_epsilon > c.run_epsilon
    ]
    if both:
        whole, more = max(both)
        words = (
            f"the ledger with the largest epsilon holds earlier runs, which add {round_up(more)} to "
            "this one; all runs of a ledger are one account"
        )
        found.append(_case("with earlier runs on the same records", whole, delta, (words,)))
    for other, cost in epsilon_by_delta(accounts.events, delta):
        found.append(_case(f"delta {other:g}", cost, other, ("the same rounds at another delta; all of these hold",)))
    if len(accounts.events) > 1:
        words = "rounds that differ in noise or sampling rate are composed in one account"
        found.append(_case(f"rounds of {len(accounts.events)} kinds", accounts.epsilon, delta, (words,)))
    return found + _fewer(record, accounts)


def _fewer(record: RunRecord, accounts: Accounts) -> list[WhatIf]:
    """Say what survivors and colluders mean for noise that is shared."""
    privacy = record.privacy
    if privacy.mechanism != "skellam" or not accounts.survivors:
        return []
    least = min(accounts.survivors.values())
    counted = (
        f"the noise of {privacy.noise_clients} honest clients is counted: min_survivors, {privacy.min_survivors}, "
        f"minus {privacy.max_colluders} colluders; further survivors added more noise, which is not counted"
    )
    found = [
        _case(f"survivors: {least} at the fewest, of {privacy.clients}", accounts.epsilon, privacy.delta, (counted,))
    ]
    honest = privacy.noise_clients - 1
    if honest >= 1 and privacy.correlation is None:
        weaker = [with_survivors(e, privacy.noise_clients, honest) for e in accounts.events]
        words = "not covered by the plan; every colluder that reveals its noise to the server removes as much of it"
        case = f"{privacy.max_colluders + 1} colluders in place of {privacy.max_colluders}"
        found.append(_case(case, epsilon(weaker, privacy.delta), privacy.delta, (words,)))
    return found


def _case(case: str, price: float | None, delta: float, conditions: tuple[str, ...]) -> WhatIf:
    return WhatIf(case=case, epsilon=finite(price), delta=delta, conditions=list(conditions))
