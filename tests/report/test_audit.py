"""The audit in the report: what it shows, what it makes void, and what it never publishes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.audit.threat_models import ATTACK_NAMES
from carefl_secure.errors import PrivacyError, RunError
from carefl_secure.report import refuse_void, write_report
from carefl_secure.report.audit import ADVERSARIES

SECRET = "0.73519"

MEMBERSHIP = {
    "attack": "membership",
    "check": "loss",
    "verdict": "passed",
    "words": f"loss: AUC {SECRET}, TPR 0.0110 at 0.01 FPR (ceiling 0.2876).",
    "figures": {
        "AUC": 0.53,
        "AUC standard error, at most": 0.01,
        "TPR at 0.01 FPR": 0.011,
        "ceiling at 0.01 FPR": 0.2876,
    },
}
CANARIES = {
    "attack": "canaries",
    "check": "one run",
    "verdict": "passed",
    "words": "1000 canaries.",
    "figures": {"epsilon lower bound: f-dp": 0.32, "attainable with 1000 canaries: f-dp": 4.4},
}
IMAGES = {
    "attack": "images",
    "check": "masked",
    "verdict": "passed",
    "words": "0 of 100.",
    "figures": {"hit rate": 0.0, "hit rate, 95 % low": 0.0, "hit rate, 95 % high": 0.036, "ceiling": 0.01},
}
SERVER = {
    "attack": "server-view",
    "check": "unmasked",
    "verdict": "passed",
    "words": "none found.",
    "figures": {"found": 0},
}


def audited(folder: Path, *findings: dict[str, Any], name: str = "audit", **other: Any) -> Path:
    (folder / "audit").mkdir(exist_ok=True)
    bad = any(finding["verdict"] == "falsified" for finding in findings)
    content = {
        "format": "carefl.audit/1",
        "run": "toy",
        "verdict": "falsified" if bad else "not falsified",
        "findings": list(findings),
        **other,
    }
    (folder / "audit" / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_an_audit_is_shown_with_result_ceiling_and_interval(toy: Path) -> None:
    report, _ = write_report(audited(toy, SERVER, CANARIES, IMAGES, MEMBERSHIP))
    assert report.verdict == "accounted"
    assert report.audit is not None
    assert report.audit.verdict == "not falsified"
    groups = {group.attack: group for group in report.audit.groups}
    assert not groups["server-view"].from_private_records
    assert groups["membership"].from_private_records
    assert groups["membership"].adversary == "a user of the released adapter"
    line = groups["membership"].lines[0]
    assert (line.result, line.ceiling) == ("1.1 % at 1 % false alarms", "28.8 %")
    assert line.interval == "AUC 0.510 to 0.550"
    assert groups["images"].lines[0].interval == "0.000 to 0.036"
    assert groups["canaries"].lines[0].result == "epsilon at least 0.32"
    page = (toy / "report" / "report.html").read_text()
    for words in ("Not protected, for the auditor only", "28.8 %", SECRET, "not falsified"):
        assert words in page


def test_figures_of_private_records_are_never_published(toy: Path) -> None:
    write_report(audited(toy, MEMBERSHIP))
    for name in ("report/card.md", "report/registry.yaml", "adapter/README.md"):
        text = (toy / name).read_text()
        assert SECRET not in text
        assert "1.1 % at 1 %" not in text


@pytest.mark.parametrize("name", ["audit", "membership-only"])
def test_a_falsified_promise_makes_the_report_void(toy: Path, name: str) -> None:
    bad = {**MEMBERSHIP, "verdict": "falsified"}
    report, _ = write_report(audited(toy, SERVER, bad, name=name))
    assert report.verdict == "void"
    assert any("membership (loss)" in reason for reason in report.reasons)
    assert (report.promise.epsilon, report.attacker, report.what_if) == (None, None, [])
    for file in ("report/card.md", "report/registry.yaml", "adapter/README.md"):
        text = (toy / file).read_text()
        assert "membership (loss)" in text
        assert SECRET not in text  # the reason names the attack, not its figures
    with pytest.raises(PrivacyError, match="falsified"):
        refuse_void(report)


def test_a_whole_audit_cannot_hide_a_falsified_part(toy: Path) -> None:
    audited(toy, SERVER)
    audited(toy, {**MEMBERSHIP, "verdict": "falsified"}, name="part")
    assert write_report(toy)[0].verdict == "void"


def test_without_an_audit_the_check_is_not_called_held(toy: Path) -> None:
    report, _ = write_report(toy)
    assert report.audit is None
    assert {c.name: c.outcome for c in report.checks}["audit"] == "not checked"
    assert "No audit was made" in (toy / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    "other",
    [
        {"format": "carefl.audit/9"},
        {"run": "another"},
        {"findings": [{"attack": "x"}]},
        {"findings": [{**SERVER, "verdict": "fine"}]},
        {"verdict": "falsified"},
    ],
)
def test_an_audit_that_cannot_be_trusted_is_refused(toy: Path, other: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="audit"):
        write_report(audited(toy, SERVER, **other))


def test_the_adversaries_are_those_of_the_attacks() -> None:
    assert tuple(ADVERSARIES) == ATTACK_NAMES
    seen: dict[str, str] = {}
    for module in (
        "attacks.attributes",
        "attacks.canaries",
        "attacks.client_canaries",
        "conformance.checks",
        "attacks.exposure",
        "attacks.membership",
        "attacks.text_inversion",
        "attacks.server_transcript",
    ):
        for found in vars(importlib.import_module(f"carefl_secure.audit.{module}")).values():
            if isinstance(found, type) and hasattr(found, "adversary") and hasattr(found, "name"):
                seen[found.name] = found.adversary
    assert len(seen) >= 8
    assert all(ADVERSARIES[name] == adversary for name, adversary in seen.items())


@pytest.mark.parametrize(("stated", "counted"), [(None, False), (0, True), (2, True)])
def test_tuning_is_counted_only_where_it_is_stated(toy: Path, stated: int | None, counted: bool, cheat: Any) -> None:
    config = toy / "config.yaml"
    if stated is not None:
        text = config.read_text().partition("\n")[2]  # without the digest, as for an intended change
        assert "  tuning_runs: null\n" in text or "privacy:\n" in text
        text = text.replace("  tuning_runs: null\n", "")
        config.write_text(text.replace("privacy:\n", f"privacy:\n  tuning_runs: {stated}\n"))
    report, _ = write_report(toy)
    assert (report.tuning.runs, report.tuning.counted) == (stated, counted)
    first = report.caveats[0].text
    assert ("uncounted" in first) == (stated is None)
    price = report.promise.epsilon
    assert price is not None
    if stated is None:
        assert report.tuning.epsilon is None
    elif stated == 0:
        assert report.tuning.epsilon == price
    else:
        assert report.tuning.epsilon is not None
        assert price < report.tuning.epsilon < 3 * price
        assert "3 runs composed" in report.tuning.sentence
    for name in ("report/card.md", "report/report.html"):
        assert report.tuning.sentence.split(".")[0] in (toy / name).read_text()


def test_what_if_names_their_conditions(copy_run: Callable[[str], Path]) -> None:
    report, _ = write_report(copy_run("gaps"))
    cases = {one.case.split(":")[0].split(" of ")[0]: one for one in report.what_if}
    price = report.promise.epsilon
    assert price is not None
    assert cases["no unit at two clients"].epsilon == pytest.approx(price, abs=1e-6)
    shared = cases["one unit at two clients"]
    assert shared.epsilon is not None
    assert price < shared.epsilon
    assert shared.delta == pytest.approx(1e-5)
    assert any("one noise" in text for text in shared.conditions)
    others = {one.delta: one.epsilon for one in report.what_if if one.case.startswith("delta ")}
    assert list(others) == pytest.approx([1e-4, 1e-6, 1e-7])
    assert others[1e-4] < report.promise.epsilon < others[1e-6] < others[1e-7]
    weaker = next(one for one in report.what_if if "colluders in place" in one.case)
    assert weaker.epsilon is not None
    assert weaker.epsilon > price
    assert any("min_survivors" in text for one in report.what_if for text in one.conditions)
    assert all(one.conditions for one in report.what_if)
    for one in report.what_if:
        assert "unit person" not in " ".join(one.conditions)  # the run protects records
