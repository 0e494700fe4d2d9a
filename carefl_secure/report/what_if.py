"""Epsilon with tuning, earlier runs, shared persons or fewer honest clients."""

from __future__ import annotations

from carefl_secure.privacy import epsilon
from carefl_secure.privacy.accounting.composition import over_disjoint_clients, over_shared_persons, with_survivors
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Tuning, WhatIf
from carefl_secure.report.spending import Accounts
from carefl_secure.rounding import finite, round_up


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
    if len(spent) > 1 and record.privacy.unit != "client":
        pair = over_shared_persons(accounts.events, 2, delta)
        found.append(_case("one unit at two clients", pair.epsilon, pair.delta, pair.conditions))
    found += _earlier(accounts, delta)
    if len(accounts.events) > 1:
        words = "rounds that differ in noise or sampling rate are composed in one account"
        found.append(_case(f"rounds of {len(accounts.events)} kinds", accounts.epsilon, delta, (words,)))
    return found + _fewer(record, accounts)


def _earlier(accounts: Accounts, delta: float) -> list[WhatIf]:
    """Say what earlier runs in the clients' ledgers add."""
    both = [
        (c.ledger_epsilon, c.run_epsilon)
        for c in accounts.clients
        if c.ledger_epsilon is not None and c.run_epsilon is not None
    ]
    added = [(whole, whole - run) for whole, run in both if whole > run]
    if not added:
        return []
    whole, more = max(added)
    words = (
        f"the ledger with the largest epsilon holds earlier runs, which add {round_up(more)} to "
        "this one; all runs of a ledger are one account"
    )
    return [_case("with earlier runs on the same records", whole, delta, (words,))]


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
    if honest >= 1:
        weaker = [with_survivors(e, privacy.noise_clients, honest) for e in accounts.events]
        words = "not covered by the plan; every colluder that reveals its noise to the server removes as much of it"
        case = f"{privacy.max_colluders + 1} colluders in place of {privacy.max_colluders}"
        found.append(_case(case, epsilon(weaker, privacy.delta), privacy.delta, (words,)))
    return found


def _case(case: str, price: float | None, delta: float, conditions: tuple[str, ...]) -> WhatIf:
    return WhatIf(case=case, epsilon=finite(price), delta=delta, conditions=list(conditions))
