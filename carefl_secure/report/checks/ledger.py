"""Checks of the ledgers: intact, complete, and within the plan."""

from __future__ import annotations

from collections import Counter

from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import FAILED, HELD, UNCHECKED, Finding, owner, some
from carefl_secure.report.spending import Accounts


def chains(record: RunRecord, accounts: Accounts) -> Finding:
    """Report every chain that is broken, with the entry."""
    broken = [book for book in (record.server, *record.clients) if book.error]
    if broken:
        return FAILED, "; ".join(f"{owner(book.name)}: {book.error}" for book in broken)
    return HELD, f"{1 + len(record.clients)} hash chains are intact"


def plan_kept(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare the plan's hash with the one in the checkpoint."""
    if not record.begun_under:
        return UNCHECKED, "the folder holds no checkpoint to compare with"
    if record.begun_under != record.plan_hash:
        return (FAILED, "plan.json was changed after the run began: the checkpoint names another plan")
    return HELD, f"SHA-256 {record.plan_hash[:16]}..., as in the checkpoint"


def releases_paid(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare releases and figures with what the server's ledger announced."""
    if record.server.error:
        return UNCHECKED, "the server's ledger is broken"
    paid: set[int] = set()
    for entry in record.server.entries:
        number = entry.payload.get("round")
        if entry.charges_round:
            paid.add(int(number) if isinstance(number, int) else -1)
        elif entry.kind == "release" and number not in paid:
            return FAILED, f"round {number} was released before it was charged"
    missing = [int(row["round"]) for row in record.rows if int(row["round"]) not in paid]
    if missing:
        return FAILED, f"metrics list rounds that no ledger entry charged: {some(missing)}"
    unreleased = {int(row["round"]) for row in record.rows} - set(accounts.survivors)
    if unreleased:
        return FAILED, f"metrics list rounds that were never released: {some(sorted(unreleased))}"
    return HELD, f"{len(accounts.survivors)} rounds released, each charged first"


def clients_paid(record: RunRecord, accounts: Accounts) -> Finding:
    """Count, for every released round, the client ledgers that hold a spend for it."""
    if not record.simulated:
        return UNCHECKED, "the clients keep their ledgers, and none is in this folder"
    if record.server.error:
        return UNCHECKED, "the server's ledger is broken"
    paid: Counter[int] = Counter()
    for book in record.clients:
        paid.update(
            {int(entry.payload.get("round", -1)) for entry in book.of_run(record.run_id) if entry.charges_round}
        )
    for number, survivors in sorted(accounts.survivors.items()):
        if paid[number] < survivors:
            return FAILED, (
                f"round {number} used the sums of {survivors} clients, but only {paid[number]} "
                "client ledgers hold a spend for it; a ledger is missing, broken or of another run"
            )
    return HELD, f"{len(record.clients)} client ledgers agree with the rounds released"


def rounds_planned(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare the number of rounds paid for with the plan."""
    if record.server.error:
        return UNCHECKED, "the server's ledger is broken"
    planned = record.privacy.rounds
    paid = sum(entry.charges_round for entry in record.server.entries)
    for stage in record.stages if record.privacy.unit != "none" else ():
        mine = sum(entry.charges_round for entry in record.server.of_run(stage.run))
        if mine > stage.privacy.rounds:
            return FAILED, (f"{mine} rounds of {stage.run} were charged, {stage.privacy.rounds} were planned")
    if paid > planned and record.privacy.unit != "none":
        return FAILED, f"{paid} rounds were charged, {planned} were planned"
    return HELD, f"{paid} of {planned} planned rounds were charged"


def min_survivors(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare the survivors of every round with min_survivors, and metrics with the ledger."""
    least = record.privacy.min_survivors
    counts = {**accounts.survivors}
    for row in record.rows:
        number, stated = int(row["round"]), int(row.get("survivors", 0))
        if accounts.survivors and counts.get(number, stated) != stated:
            return (FAILED, f"round {number}: metrics say {stated} clients, the ledger {counts[number]}")
        counts[number] = stated
    low = sorted(number for number, count in counts.items() if count < least)
    if low:
        return FAILED, f"fewer than min_survivors={least} clients in rounds {some(low)}"
    if not counts:
        return UNCHECKED, "no round was released"
    return HELD, f"never fewer than {min(counts.values())} clients; min_survivors is {least}"
