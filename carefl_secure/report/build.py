"""Build the report of a run from its records, write it into its folder, and refuse a void one."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any

import carefl_secure
from carefl_secure.errors import PrivacyError, RunError
from carefl_secure.privacy import verdict as strength_of
from carefl_secure.privacy.accounting.attack_bounds import AttackerBounds, attacker_bounds
from carefl_secure.report import sections
from carefl_secure.report.audit import audit_part
from carefl_secure.report.checks import check_run
from carefl_secure.report.render import page
from carefl_secure.report.run_record import RunRecord, read_run
from carefl_secure.report.schema import Attacker, ClientLine, Promise, Report, Verdict
from carefl_secure.report.spending import settle, tuning_part, what_if
from carefl_secure.rounding import finite, percent_up
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.strict_json import load_json


def build_report(record: RunRecord) -> tuple[Report, AttackerBounds | None]:
    """Check and price a run: its report, and the attacker's bounds where they hold; PrivacyError without a price."""
    accounts = settle(record)
    checks = check_run(record, accounts)
    reasons = [
        f"{check.detail[:1].upper()}{check.detail[1:]}. Failed check: {check.text}."
        for check in checks
        if check.outcome == "failed"
    ]
    verdict: Verdict = "unprotected" if record.privacy.unit == "none" else "accounted"
    if reasons:
        verdict = "void"
    price = accounts.largest if verdict == "accounted" else None
    bounds = attacker_bounds(accounts.events) if verdict == "accounted" else None
    report = Report(
        verdict=verdict,
        reasons=reasons,
        run=sections.run_part(record, accounts),
        promise=_promise(record, verdict, price),
        unit=sections.unit_part(record),
        mechanism=sections.mechanism_part(record, accounts),
        trust=sections.trust_part(record),
        checks=checks,
        caveats=sections.caveats(record),
        accounting=sections.accounting_part(record, accounts),
        attacker=None if bounds is None else _attacker(bounds),
        rounds=[sections.round_line(row, finite(accounts.by_round.get(int(row["round"])))) for row in record.rows],
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
        preparation=_preparation(record.path),
        tuning=tuning_part(record, accounts, verdict == "accounted"),
        software={
            "report written by carefl-secure": carefl_secure.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
        },
        plan_sha256=record.plan_hash,
        ledger_head=record.server.entries[-1].hash if record.server.entries else None,
    )
    return report, bounds


def _preparation(run: Path) -> list[str]:
    """Return what a run measured on public records, in sentences; none of a run that measured nothing."""
    path = run / "preparation.json"
    try:
        kept = load_json(path.read_text(encoding="utf-8"))
        # Runs of earlier versions kept no sentence on their sampling rate.
        said = [kept["forecast"]["sentence"], kept.get("sample_rate", ""), kept["server_lr"]["sentence"]]
        said += [kept["warm_start"], kept["language"]["sentence"]]
        return [f"{one[:1].upper()}{one[1:]}." for one in said if one]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read; restore it from a copy: {error}") from error


def _promise(record: RunRecord, verdict: Verdict, price: float | None) -> Promise:
    privacy = record.privacy
    held = price is not None
    others = privacy.max_colluders if privacy.trust != "none" else 0
    allied = f", even with {others} colluding client{'s' if others > 1 else ''}" if others else ""
    if price is not None:
        sentence = f"{privacy.promise(price)} {sections.aggregation_of(record)}".rstrip()
    elif verdict == "unprotected":
        sentence = privacy.promise(math.inf)
    else:
        sentence = (
            "Nothing is guaranteed: a condition of the guarantee failed, or the records of this run cannot be trusted."
        )
    return Promise(
        epsilon=price,
        delta=privacy.delta if held else None,
        flavour="(epsilon, delta)-differential privacy" if held else "none",
        strength=None if price is None else strength_of(price),
        sentence=sentence,
        protected_from=[f"the server{allied}", "every other client", "everyone who gets the adapter"] if held else [],
        not_protected=_left_open(record) if held else ["everything"],
    )


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


def write_report(run: Path, *, dpia: bool = False) -> tuple[Report, list[Path]]:
    """Check a run, price it anew, and write its report; return it with the paths written.

    Written are page, data, card and registry entry under ``report/``, and our block in the adapter's model card; with
    ``dpia`` also ``dpia.html`` for the auditor and ``dpia-public.html``, under the headings of Art. 35(7) GDPR.
    RunError where it is not a run folder, a file of it cannot be read, or nothing can be written; PrivacyError where
    the plan or an event states something that cannot be priced.

    Guarantees
    ----------
    The same folder gives the same bytes, and a void report is written in place of any earlier one.
    """
    run = Path(run)
    report, bounds = build_report(read_run(run))
    readme, scores = run / "adapter" / "README.md", run / "evaluation" / "evaluation.json"
    scored = _evaluation(scores) if scores.is_file() else None
    files = {
        run / "report" / "report.html": page.html_page(report, bounds, scored),
        run / "report" / "report.json": report.as_json() + "\n",
        run / "report" / "card.md": page.markdown_section(report),
        run / "report" / "registry.yaml": page.registry_entry(report),
        readme: page.put_into_readme(_text(readme), report),
    }
    if dpia:
        files[run / "report" / "dpia.html"] = page.dpia_page(report, public=False)
        files[run / "report" / "dpia-public.html"] = page.dpia_page(report, public=True)
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
    return report, list(files)


def _evaluation(file: Path) -> dict[str, Any]:
    """Read an evaluation; RunError where it is damaged, or of another version."""
    try:
        found = load_json(_text(file))
    except ValueError as error:
        raise RunError(f"{file} is not JSON; run carefl-secure evaluate again: {error}") from error
    if not isinstance(found, dict) or found.get("format") != "carefl.evaluation/1":
        raise RunError(f"{file} is no evaluation of this version; run carefl-secure evaluate again")
    return found


def write_evaluation_page(file: Path) -> Path:
    """Write an evaluation's page next to its JSON, return its path; RunError where reading or writing fails."""
    path = file.with_suffix(".html")
    write_atomically(path, page.evaluation_page(_evaluation(file)).encode())
    return path


def refuse_void(report: Report) -> None:
    """Raise PrivacyError with the reasons if a report is void."""
    if report.verdict == "void":
        raise PrivacyError(
            "the report is void, so no privacy may be claimed for this run: " + "; ".join(report.reasons)
        )


def refuse_without_adapter(run: Path, report: Report) -> None:
    """Raise RunError where every planned round was released, but the folder lacks the weights that came of them."""
    if report.run.rounds_released >= report.run.rounds_planned and not RunFolder(run).finished:
        raise RunError(
            f"the report is written, but {run} holds no adapter weights, though all its rounds were released; write "
            f"them with carefl-secure train --resume {run}, or restore adapter/ from a copy"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read; correct or remove it: {error}") from error
