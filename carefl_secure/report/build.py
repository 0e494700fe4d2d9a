"""From a run's records to its report."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from typing import Literal

import carefl_secure
from carefl_secure.privacy import verdict as strength_of
from carefl_secure.privacy.attacker import AttackerBounds, attacker_bounds
from carefl_secure.report.accounts import Accounts, settle
from carefl_secure.report.checks import Check, check_run
from carefl_secure.report.hazards import hazards
from carefl_secure.report.run import RunRecord
from carefl_secure.report.schema import (
    Accounting,
    Attacker,
    CheckLine,
    ClientLine,
    Mechanism,
    Promise,
    Report,
    RoundLine,
    RunLine,
    Trust,
    Tuning,
    Unit,
)
from carefl_secure.report.words import percent_up

__all__ = ["build_report"]

_NOT_METRICS = {
    "round",
    "epsilon",
    "clients",
    "survivors",
    "bytes_per_client",
    "gradient_norm",
    "noise_norm",
    "seconds",
}

_UNITS = {
    "record": "one image of one person, with its text and labels, held by one client",
    "client": "everything that one client holds",
    "none": "nothing: no unit was chosen",
}

_Verdict = Literal["accounted", "void", "unprotected"]


def build_report(record: RunRecord) -> tuple[Report, AttackerBounds | None]:
    """Check and price a run.

    Parameters
    ----------
    record : RunRecord

    Returns
    -------
    tuple of Report and AttackerBounds or None
        The report, and the attacker's ceilings with their curve where they hold.

    Raises
    ------
    PrivacyError
        A spend in a whole ledger cannot be priced.
    """
    accounts = settle(record)
    checks = check_run(record, accounts)
    reasons = [
        f"{check.detail[:1].upper()}{check.detail[1:]}. Did not hold: {check.text}."
        for check in checks
        if check.outcome == "failed"
    ]
    verdict: _Verdict = "unprotected" if record.privacy.unit == "none" else "accounted"
    if reasons:
        verdict = "void"
    price = _price(accounts) if verdict == "accounted" else None
    bounds = attacker_bounds(accounts.events) if verdict == "accounted" else None
    report = Report(
        verdict=verdict,
        reasons=reasons,
        run=_run(record, accounts),
        promise=_promise(record, verdict, price),
        unit=Unit(
            kind=record.privacy.unit,
            definition=_UNITS[record.privacy.unit],
            adjacency=record.privacy.adjacency,
            max_records_per_person=None,
        ),
        mechanism=_mechanism(record, accounts),
        trust=_trust(record),
        checks=[_line(check) for check in checks],
        hazards=hazards(record),
        accounting=_accounting(record, accounts),
        attacker=None if bounds is None else _attacker(bounds),
        rounds=_rounds(record, accounts),
        clients=[
            ClientLine(
                client=one.name,
                chain_whole=one.run_epsilon is not None,
                rounds_paid=one.paid,
                run_epsilon=_finite(one.run_epsilon),
                ledger_epsilon=_finite(one.ledger_epsilon),
            )
            for one in accounts.clients
        ],
        tuning=_tuning(record),
        software={
            "report written by carefl-secure": carefl_secure.__version__,
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("dp-accounting", "numpy", "scipy")
            },
        },
        plan_sha256=record.plan_hash,
        ledger_head=record.server.entries[-1].hash if record.server.entries else None,
    )
    return report, bounds


def _price(accounts: Accounts) -> float | None:
    """Return what anybody's records may have cost: the dearest of all accounts of this run."""
    found = [accounts.epsilon, *(client.run_epsilon for client in accounts.clients)]
    return max((price for price in found if price is not None), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _figure(value: object) -> bool:
    """Tell whether a value of a row is a number that can be shown."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _line(check: Check) -> CheckLine:
    return CheckLine(name=check.name, text=check.text, outcome=check.outcome, detail=check.detail)


def _run(record: RunRecord, accounts: Accounts) -> RunLine:
    times = [entry.time for entry in record.server.entries]
    source = record.setting("data.source") or "not stated"
    labels = record.setting("data.labels")
    return RunLine(
        id=record.run_id,
        first_entry=times[0] if times else "unknown",
        last_entry=times[-1] if times else "unknown",
        rounds_planned=record.privacy.rounds,
        rounds_released=len(accounts.survivors) or len(record.rows),
        data=f"{source}, labels {labels}" if labels else str(source),
        base_model=str(record.setting("model.base") or "not stated"),
        simulated=record.simulated,
    )


def _promise(record: RunRecord, verdict: _Verdict, price: float | None) -> Promise:
    privacy = record.privacy
    held = verdict == "accounted" and price is not None
    if held and price is not None:
        sentence = privacy.promise(price)
    elif verdict == "unprotected":
        sentence = privacy.promise(math.inf)
    else:
        sentence = (
            "Nothing is promised: a condition that the guarantee rests on did not hold, or the "
            "records of this run cannot be trusted."
        )
    return Promise(
        epsilon=price if held else None,
        delta=privacy.delta if held else None,
        flavour="(epsilon, delta)-differential privacy" if held else "none",
        strength=strength_of(price) if held and price is not None else None,
        sentence=sentence,
        protected_from=_from_whom(record) if held else [],
        not_protected=_left_open(record) if held else ["everything"],
    )


def _from_whom(record: RunRecord) -> list[str]:
    colluders = record.privacy.max_colluders
    server = (
        "the server"
        if record.privacy.trust == "none" or not colluders
        else (f"the server, even with {colluders} colluding client{'s' if colluders > 1 else ''}")
    )
    return [server, "every other client", "everyone who gets the adapter"]


def _left_open(record: RunRecord) -> list[str]:
    person = ["a person's several records taken together"]
    return [
        *(person if record.privacy.unit == "record" else []),
        "the declared number of records",
        "label names",
        "public and test images",
        "who took part when",
    ]


def _mechanism(record: RunRecord, accounts: Accounts) -> Mechanism:
    privacy = record.privacy
    names = {
        "skellam": "Skellam noise, in shares, on a secure sum of clipped per-record gradients",
        "gaussian": "Gaussian noise of each client on its sum of clipped per-record gradients",
        "none": "none: sums are released as they are",
    }
    source = "AES-256 in counter mode, keyed by the operating system's entropy"
    if record.setting("unsafe_deterministic_noise") is True:
        source = "a seed that anyone can guess"
    if privacy.mechanism == "none":
        source = "none"
    return Mechanism(
        name=names[privacy.mechanism],
        event=None if record.event is None else record.event.to_json(),
        count=sum(event.count for event in accounts.events) or len(accounts.survivors),
        noise_multiplier=privacy.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        normalised=privacy.normalise,
        sample_rate=privacy.sample_rate,
        normaliser=(
            f"public: sample rate x {privacy.public_records} declared records x share of clients "
            "that survived; never a count of the data"
        ),
        noise_source=source,
    )


def _trust(record: RunRecord) -> Trust:
    privacy = record.privacy
    secure = privacy.trust == "secagg"
    return Trust(
        setting="federated, with a secure sum" if secure else "federated, each client on its own",
        secure_sum=secure,
        clients=privacy.clients,
        floor=privacy.min_survivors,
        max_colluders=privacy.max_colluders,
        honest_noise_makers=privacy.noise_clients,
        sees={
            "each client": "its own records, and the adapter of every round",
            "the server": (
                f"the sum over at least {privacy.min_survivors} clients of every round, who took "
                "part, and its own public images"
                if secure
                else "every client's noisy sum, who took part, and its own public images"
            ),
            "whoever gets the adapter": "the adapter, this report, and nothing else",
        },
    )


def _accounting(record: RunRecord, accounts: Accounts) -> Accounting:
    claims = [float(row["epsilon"]) for row in record.rows if _figure(row.get("epsilon"))]
    rounds = sum(event.count for event in accounts.events)
    return Accounting(
        accountant=accounts.accountant if record.privacy.unit != "none" else "none",
        library="carefl-secure and dp_accounting",
        composition="none"
        if record.privacy.unit == "none"
        else (
            f"{rounds} sums in one account, with parameters fixed before the first; clients hold "
            "different records, so each record pays in one ledger and the dearest counts"
        ),
        recomputed_epsilon=_finite(accounts.epsilon),
        claimed_epsilon=claims[-1] if claims else None,
        target_epsilon=record.privacy.target_epsilon,
    )


def _attacker(bounds: AttackerBounds) -> Attacker:
    found = bounds.true_positive_rate[0.01]
    return Attacker(
        method="PLD" if bounds.method == "PLD" else "RDP",
        why=bounds.why,
        tpr_at_1_percent_fpr=found,
        tpr_at_0_1_percent_fpr=bounds.true_positive_rate[0.001],
        advantage=bounds.advantage,
        mu=_finite(bounds.mu),
        sentence=(
            "An attacker who wrongly names 1 % of those whose record was not used finds at most "
            f"{percent_up(found)} of those whose record was, whatever else the attacker knows."
        ),
    )


def _rounds(record: RunRecord, accounts: Accounts) -> list[RoundLine]:
    return [
        RoundLine(
            round=int(row["round"]),
            epsilon=_finite(accounts.by_round.get(int(row["round"]))),
            survivors=int(row["survivors"]) if "survivors" in row else None,
            metrics={
                name: float(value)
                for name, value in row.items()
                if name not in _NOT_METRICS and _figure(value)
            },
        )
        for row in record.rows
    ]


def _tuning(record: RunRecord) -> Tuning:
    told = record.setting("tuning") or record.setting("privacy.tuning")
    told = told if isinstance(told, dict) else {}
    runs, method = told.get("runs"), told.get("method")
    counted = told.get("counted") is True
    if counted:
        sentence = "The configuration states that runs made to choose settings are counted."
    elif runs is not None:
        sentence = f"{runs} runs were made to choose settings; they are NOT in this epsilon."
    else:
        sentence = (
            "Runs made to choose settings, if there were any on these records, are NOT in this "
            "epsilon: nothing in the configuration counts them. Ten such runs can double it."
        )
    return Tuning(
        runs=runs if isinstance(runs, int) else None,
        method=None if method is None else str(method),
        counted=counted,
        sentence=sentence,
    )
