"""What can be checked from a run folder alone; any failure makes the report void."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import gammainc

from carefl_secure.privacy import SampledSkellam, epsilon
from carefl_secure.privacy.ledger.entry import charged_by_round, spends_due, spent
from carefl_secure.report.audit import judge_audits
from carefl_secure.report.run_record import RunRecord, StageRecord
from carefl_secure.report.schema import FAILED, HELD, UNCHECKED, CheckLine, Finding, owner, some
from carefl_secure.report.spending import Accounts

_CHANCE = 1e-6  # how seldom an honest run may be called void by the test of its noise
_CLOSE = 1e-6


def encoding(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare the event of a round with the encoding and the privacy plan it came from."""
    short: list[str] = []
    for stage in record.stages:
        if not isinstance(stage.event, SampledSkellam):
            return UNCHECKED, "this run has no integer encoding"
        short += _short(stage, stage.event)
    if short:
        return FAILED, f"the event of a round states less than the plan requires: {', '.join(short)}"
    return HELD, f"noise multiplier {record.privacy.noise_multiplier:.4g} in every event"


def _short(stage: StageRecord, event: SampledSkellam) -> list[str]:
    """Name what the event of a stage states less of than its plan needs."""
    privacy, code = stage.privacy, stage.plan["encoding"]
    return [
        name
        for name, stated, least in (
            ("noise", event.variance, (privacy.noise_multiplier * event.l2) ** 2),
            ("norm l1", event.l1, code["l1_sensitivity"]),
            ("norm l2", event.l2, code["l2_sensitivity"]),
            ("norm l2 at this scale", event.l2, code["scale"] * privacy.clipping_norm),
            ("rounding failure", event.beta, code["dither_failure"]),
            ("sampling rate", event.sample_rate, privacy.round_rate),
            ("clipping norm", code["clipping_norm"], privacy.clipping_norm),
            ("clients that make noise", privacy.noise_clients, code["noise_clients"]),
        )
        if stated < least * (1.0 - 1e-9)
    ]


def events(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare every spend of the run with the planned event."""
    spends = 0
    for book in (record.server, *record.clients):
        entries = book.entries if book.name == "server" else book.of_run(record.run_id)
        if any(entry.unprotected for entry in entries):
            return FAILED, f"{owner(book.name)} records a round without noise"
        paid = [entry for entry in entries if entry.kind == "spend"]
        for entry, event in zip(paid, spent(paid), strict=True):
            spends += 1
            planned = record.stage_named(entry.payload.get("run")).event
            if planned is None or event != planned:
                charged, wanted = event.to_json(), {} if planned is None else planned.to_json()
                names = [name for name in charged if charged[name] != wanted.get(name)]
                listed = ", ".join(f"{name} {charged[name]} for {wanted.get(name)}" for name in names)
                return FAILED, f"{owner(book.name)} charged another event than that of the plan: {listed}"
        for stage in record.stages:
            if stage.privacy.bands > 1 and spends_due(entries, stage.run, stage.privacy.bands) > 0:
                return FAILED, f"{owner(book.name)} has too few spends for the rounds in it: one record may be in more"
    if not spends:
        return UNCHECKED, "no readable ledger holds a spend"
    return HELD, f"{spends} spends in {1 + len(record.clients)} ledgers, all as planned"


def target(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare what was spent, and the whole plan, with the target."""
    target, worst = accounts.agreed, accounts.largest
    if accounts.epsilon is None or worst is None:
        return UNCHECKED, "the server's ledger is broken"
    if target is None:
        return UNCHECKED, "the plan names no target"
    if worst > target * (1.0 + 1e-9):
        return FAILED, f"epsilon {worst:.4f} was spent, the agreed limit is {target:g}"
    planned = [
        stage.event.times(stage.event.count * stage.privacy.cycles)
        for stage in record.stages
        if stage.event is not None
    ]
    whole = epsilon(planned, record.privacy.delta) if planned else 0.0
    if whole > target * (1.0 + 1e-9):
        return (FAILED, f"the planned rounds would cost epsilon {whole:.4f}, the agreed limit is {target:g}")
    return HELD, f"{worst:.4f} of {target:g} is spent"


def claims(record: RunRecord, accounts: Accounts) -> Finding:
    """Compare the recomputed epsilon of every round with what the run claimed."""
    if accounts.epsilon is None:
        return UNCHECKED, "the server's ledger is broken"
    compared = 0
    for row in record.rows:
        number, claim = int(row["round"]), row.get("epsilon")
        if not isinstance(claim, int | float) or isinstance(claim, bool):
            return FAILED, f"round {number} claims epsilon {claim!r}, which is no number"
        found = accounts.at_least.get(number)
        if found is None:
            continue
        compared += 1
        if not claim >= found * (1.0 - _CLOSE):
            return FAILED, (f"after round {number} the run claimed epsilon {claim:.4f}; its ledger costs {found:.4f}")
    if not compared:
        return UNCHECKED, "no round is finished"
    return HELD, f"{compared} claims compared with epsilon recomputed by {accounts.accountant}"


def noise(record: RunRecord, accounts: Accounts) -> Finding:
    """Test that the opened sums are not shorter than their noise alone would be.

    With D entries of noise deviation s, the squared norm of an opened sum over s^2 is at least a chi-square of D
    degrees of freedom, whatever was summed. The lower tail of all rounds together is tested.
    """
    privacy = record.privacy
    rows = [row for row in record.rows if "gradient_norm" in row and row.get("survivors")]
    if not rows or privacy.mechanism != "skellam":
        return UNCHECKED, "the folder holds no norms of opened sums"
    total = freedom = 0.0
    for row in rows:
        stage = record.stage_of(int(row["round"]))
        privacy, code = stage.privacy, stage.plan["encoding"]
        share = (privacy.noise_multiplier * code["l2_sensitivity"]) ** 2 / code["noise_clients"]
        freedom += float(code["dimension"])
        survivors = float(row["survivors"])
        divisor = privacy.expected_batch * survivors / privacy.clients
        stdev = math.sqrt(survivors * share) / code["scale"] / divisor
        total += (float(row["gradient_norm"]) / stdev) ** 2
    chance = float(gammainc(freedom / 2.0, total / 2.0))
    if not chance >= _CHANCE:
        return FAILED, (
            f"they are shorter than the noise alone would be (chi-square {total:.4g} at "
            f"{freedom:.4g} degrees of freedom, p = {chance:.1e}): noise is missing"
        )
    shown = f"chi-square {total:.4g} at {freedom:.4g} degrees of freedom"
    return HELD, f"{shown}, lower tail {chance:.2g}"


def keys(record: RunRecord, accounts: Accounts) -> Finding:
    """Look for the setting that makes noise predictable."""
    if record.setting("unsafe_deterministic_noise") is True:
        return (FAILED, "unsafe_deterministic_noise is on: whoever knows the seed can remove the noise")
    return HELD, "as the configuration states"


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
    paid = charged_by_round([book.entries for book in record.clients], record.run_id)
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


_Find = Callable[[RunRecord, Accounts], Finding]
_UNSEEN = "sampling leaves no trace in the folder; an audit of the client tests it"

_ALWAYS: tuple[tuple[str, str, _Find], ...] = (
    ("ledger_chains", "No ledger entry was changed, added or removed", chains),
    ("plan_kept", "The plan is the one that the run was started with", plan_kept),
    ("releases_paid", "Every released round was charged first", releases_paid),
    ("clients_paid", "Every client that was summed had charged its ledger", clients_paid),
    ("rounds_planned", "No more rounds were charged than planned", rounds_planned),
    ("audit", "No audit of the run falsified its promise", lambda record, _: judge_audits(record.audit)),
    ("min_survivors", "Every opened sum is over min_survivors clients or more", min_survivors),
)
_PROTECTED: tuple[tuple[str, str, _Find], ...] = (
    ("encoding", "The integer encoding carries the planned noise and norms", encoding),
    ("events", "The events charged are those of the plan", events),
    ("target", "All rounds stay within the agreed epsilon", target),
    ("claims", "The run claimed no less epsilon than its ledger shows", claims),
    ("noise", "The opened sums are as noisy as the plan says", noise),
    ("keys", "Noise and keys come from the operating system's entropy", keys),
    ("sampler", "Records are Poisson sampled, and the sample stays secret", lambda *_: (UNCHECKED, _UNSEEN)),
)


def check_run(record: RunRecord, accounts: Accounts) -> list[CheckLine]:
    """Check a run.

    Guarantees
    ----------
    A run that kept its plan fails with a probability below 1e-6. There is no converse: whoever can
    write to the folder can forge a run that passes.
    """
    wanted = _ALWAYS if record.privacy.unit == "none" else _ALWAYS + _PROTECTED
    found = ((name, text, find(record, accounts)) for name, text, find in wanted)
    return [CheckLine(name=name, text=text, outcome=outcome, detail=detail) for name, text, (outcome, detail) in found]
