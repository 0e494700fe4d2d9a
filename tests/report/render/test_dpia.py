"""The prefilled impact assessment: complete under the headings of Art. 35(7), and nothing private in public."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from carefl_secure.report import Report, write_report
from carefl_secure.report.run_record import read_run
from tests.report.render.test_page import read

HEADINGS = (
    "(a) Systematic description",
    "(b) Necessity and proportionality",
    "(c) Risks to the rights",
    "(d) Measures",
    "Comparison with published deployments",
    "Artificial Intelligence Act",
    "Opinions",
    "Glossary",
    "Signatures",
)


def pages(run: Path) -> tuple[Report, str, str]:
    report, files = write_report(run, dpia=True)
    found = [(run / "report" / name) for name in ("dpia.html", "dpia-public.html")]
    assert set(found) <= set(files)
    own, public = (path.read_text() for path in found)
    return report, own, public


def test_every_heading_and_every_party_is_there(copy_run: Callable[[str], Path]) -> None:
    report, own, public = pages(copy_run("toy"))
    for page in (own, public):
        places = [page.index(f"<h2>{heading}") for heading in HEADINGS]
        assert places == sorted(places)
        assert read(page).loads == ["data:,"] and "is not legal advice" in page
        assert page.count('<section class="statement">') == report.trust.clients == 6
        assert page.count("controller, joint controller or processor") == 7  # the server and six sites
        assert "Art. 5(1)(f)" in page and "except for medical or safety reasons" in page and "2024/1689" in page
        assert "Retention" in page and "counter(page)" in page
        assert report.promise.sentence.split(":")[0] in page
        for caveat in report.caveats:
            assert caveat.text.split("'")[0][:40] in page
    assert own != public


def test_figures_of_private_records_stay_out_of_the_public_version(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    finding = {"attack": "membership", "check": "threshold", "verdict": "passed", "words": "AUC", "figures": {}}
    head = {"format": "carefl.audit/1", "run": read_run(run).run_id, "verdict": "not falsified"}
    (run / "audit").mkdir()
    (run / "audit" / "audit.json").write_text(json.dumps({**head, "findings": [finding]}))
    _, own, public = pages(run)
    assert "Findings of the audit" in own and "threshold" in own and "rounds paid for by its ledger" in own
    for words in ("Findings of the audit", "threshold", "not falsified", "rounds paid for by its ledger"):
        assert words not in public
    assert "not for publication" in own and "not for publication" not in public


def test_a_void_run_states_no_guarantee(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    ledger = run / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"round":1', b'"round":7'))
    report, own, public = pages(run)
    assert report.verdict == "void"
    for page in (own, public):
        assert "No privacy guarantee may be stated" in page and "No bound on an attacker holds" in page


def test_without_being_asked_for_it_is_not_written(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    write_report(run)
    assert not list((run / "report").glob("dpia*"))


# What Art. 5(1)(f) of the AI Act is about; none of it may be an example of ours.
_PROHIBITED = re.compile(
    r"\b(employees?|job applicants?|interviewees?|pupils?|students?|classrooms?|call.cent(?:er|re)s?|workplaces?)\b",
    re.I,
)
_ROOT = Path(__file__).resolve().parents[3]
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md"), *(_ROOT / "docs" / "examples").rglob("*.py")]


@pytest.mark.parametrize("page", _PAGES, ids=lambda path: path.name)
def test_no_example_infers_emotions_at_work_or_in_education(page: Path) -> None:
    for line in page.read_text("utf-8").splitlines():
        if found := _PROHIBITED.search(line):
            assert re.search(r"prohibit|must not|refuse", line), f"{page.name}: {found[0]}: {line}"
