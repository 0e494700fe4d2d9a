"""Build the report of a run from its records."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from typing import Literal

import carefl_secure
from carefl_secure.privacy import verdict as strength_of
from carefl_secure.privacy.accounting.attack_bounds import AttackerBounds, attacker_bounds
from carefl_secure.report.audit import audit_part
from carefl_secure.report.caveats import caveats
from carefl_secure.report.checks.run_checks import check_run
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Attacker, ClientLine, Promise, Report
from carefl_secure.report.sections import (
    accounting_part,
    aggregation_of,
    mechanism_part,
    round_lines,
    run_part,
    trust_part,
    unit_part,
)
from carefl_secure.report.spending import finite, settle
from carefl_secure.report.what_if import tuning_part, what_if
from carefl_secure.rounding import percent_up

_Verdict = Literal["accounted", "void", "unprotected"]


def build_report(record: RunRecord) -> tuple[Report, AttackerBounds | None]:
    """Check and price a run; return its report, and the attacker's bounds where they hold.

    PrivacyError is raised if a spend in an intact ledger cannot be priced.
    """
    accounts = settle(record)
    checks = check_run(record, accounts)
    reasons = [
        f"{check.detail[:1].upper()}{check.detail[1:]}. Failed check: {check.text}."
        for check in checks
        if check.outcome == "failed"
    ]
    verdict: _Verdict = "unprotected" if record.privacy.unit == "none" else "accounted"
    if reasons:
        verdict = "void"
    price = accounts.largest if verdict == "accounted" else None
    bounds = attacker_bounds(accounts.events) if verdict == "accounted" else None
    report = Report(
        verdict=verdict,
        reasons=reasons,
        run=run_part(record, accounts),
        promise=_promise(record, verdict, price),
        unit=unit_part(record),
        mechanism=mechanism_part(record, accounts),
        trust=trust_part(record),
        checks=checks,
        caveats=caveats(record),
        accounting=accounting_part(record, accounts),
        attacker=None if bounds is None else _attacker(bounds),
        rounds=round_lines(record, accounts),
        clients=[
            ClientLine(
                client=one.name,
                chain_whole=one.run_epsilon is not None,
                rounds_paid=one.paid,
                run_epsilon=finite(one.run_epsilon),
                ledger_epsilon=finite(one.ledger_epsilon),
            )
            for one in accounts.clients
        ],
        what_if=what_if(record, accounts) if verdict == "accounted" else [],
        audit=audit_part(record.audit),
        tuning=tuning_part(record, accounts, verdict == "accounted"),
        software={
            "report written by carefl-secure": carefl_secure.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("dp-accounting", "numpy", "scipy")},
        },
        plan_sha256=record.plan_hash,
        ledger_head=record.server.entries[-1].hash if record.server.entries else None,
    )
    return report, bounds


def _promise(record: RunRecord, verdict: _Verdict, price: float | None) -> Promise:
    privacy = record.privacy
    held = verdict == "accounted" and price is not None
    if held and price is not None:
        sentence = f"{privacy.promise(price)} {aggregation_of(record)}".rstrip()
    elif verdict == "unprotected":
        sentence = privacy.promise(math.inf)
    else:
        sentence = (
            "Nothing is guaranteed: a condition of the guarantee failed, or the records of this run cannot be trusted."
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
    person = {
        "record": ["a person's several records taken together"],
        "person": ["one person's records at several clients taken together"],
    }
    return [
        *person.get(record.privacy.unit, []),
        "the declared number of records",
        "label names",
        "public and test images",
        "who took part when",
    ]


def _attacker(bounds: AttackerBounds) -> Attacker:
    found = bounds.true_positive_rate[0.01]
    return Attacker(
        method="PLD" if bounds.method == "PLD" else "RDP",
        why=bounds.why,
        tpr_at_1_percent_fpr=found,
        tpr_at_0_1_percent_fpr=bounds.true_positive_rate[0.001],
        advantage=bounds.advantage,
        mu=finite(bounds.mu),
        sentence=(
            "An attacker with 1 % false alarms finds at most "
            f"{percent_up(found)} of the records that were used, whatever else the attacker knows."
        ),
    )
