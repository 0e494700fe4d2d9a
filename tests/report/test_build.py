"""The report of runs that went well."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from carefl_secure.errors import RunError
from carefl_secure.federation.plan.run_plan import SPARSE_ABOVE
from carefl_secure.privacy import Ledger, epsilon, event_from_json
from carefl_secure.report import FORMAT, Report, refuse_void, write_report
from carefl_secure.report.render.page import check_registry_entry, put_into_readme, registry_entry
from carefl_secure.report.run_record import read_run
from carefl_secure.report.sections import aggregation_of, trust_part


def events_of(run: Path) -> tuple[list[object], float]:
    plan = json.loads((run / "plan.json").read_text())
    event = event_from_json(plan["event"])
    return [event], epsilon([event] * 4, plan["privacy"]["delta"])


def test_epsilon_is_computed_anew(written: tuple[Report, Path]) -> None:
    report, toy = written
    assert report.verdict == "accounted"
    assert report.reasons == []
    assert report.promise.epsilon == pytest.approx(events_of(toy)[1], rel=1e-12)
    assert report.promise.epsilon == report.accounting.claimed_epsilon
    assert report.promise.delta == 1e-5
    assert report.promise.strength == "reasonable, not strong"
    assert report.accounting.accountant.startswith("PLD")
    assert [line.round for line in report.rounds] == [1, 2, 3, 4]
    prices = [line.epsilon for line in report.rounds]
    assert None not in prices
    assert prices == sorted(p for p in prices if p is not None)
    assert report.rounds[1].metrics == {"mAP": 0.5, "macro_f1": 0.25}
    assert report.rounds[0].metrics == {}
    refuse_void(report)


def test_a_sparse_masking_graph_is_reported(toy: Path, plan_toy: Callable[..., Any]) -> None:
    plan = plan_toy(SPARSE_ABOVE + 1, rounds=1, public_records=4000, target_epsilon=8.0)
    (toy / "plan.json").write_text(json.dumps(plan.to_json()))
    record = read_run(toy)
    assert trust_part(record).masking_graph == vars(plan.graph)
    assert aggregation_of(record) == plan.graph.text


def test_each_client_pays_in_its_own_ledger(written: tuple[Report, Path]) -> None:
    report, _ = written
    assert [line.client for line in report.clients] == [str(i) for i in range(6)]
    assert {line.rounds_paid for line in report.clients} == {4}
    assert {line.run_epsilon for line in report.clients} == {report.promise.epsilon}


def test_what_an_earlier_run_spent_is_shown_but_not_of_this_run(toy: Path) -> None:
    """A client's ledger outlives a run; the report tells the two prices apart."""
    path = toy / "clients" / "1" / "ledger.jsonl"
    event = event_from_json(json.loads((toy / "plan.json").read_text())["event"])
    about = {"run": "earlier", "round": 1, "unit": "record"}
    Ledger(path).spend(event, 100.0, 1e-5, about)
    report, _ = write_report(toy)
    assert report.verdict == "accounted"
    line = report.clients[1]
    assert line.rounds_paid == 4
    assert line.run_epsilon == report.promise.epsilon
    assert line.ledger_epsilon is not None
    assert line.run_epsilon is not None
    assert line.ledger_epsilon > line.run_epsilon


def test_whoever_missed_rounds_spent_less(copy_run: Callable[[str], Path]) -> None:
    report, _ = write_report(copy_run("gaps"))
    assert report.verdict == "accounted"
    paid = [line.rounds_paid for line in report.clients]
    assert sum(paid) == 4 * 5
    assert min(paid) < 4
    for line in report.clients:
        assert line.run_epsilon is not None
        assert (line.run_epsilon < (report.promise.epsilon or 0.0)) == (line.rounds_paid < 4)


def test_clients_that_keep_their_ledgers_elsewhere(toy: Path) -> None:
    for path in sorted(toy.glob("clients/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (toy / "clients").rmdir()
    report, _ = write_report(toy)
    assert report.verdict == "accounted"
    assert report.clients == []
    assert not report.run.simulated
    outcomes = {check.name: check.outcome for check in report.checks}
    assert outcomes["clients_paid"] == "not checked"


def test_what_was_not_checked_is_not_called_held(written: tuple[Report, Path]) -> None:
    report, _ = written
    outcomes = {check.name: check.outcome for check in report.checks}
    assert outcomes.pop("sampler") == "not checked"
    assert outcomes.pop("audit") == "not checked"
    assert set(outcomes.values()) == {"held"}


def test_the_attackers_ceilings(written: tuple[Report, Path]) -> None:
    report, toy = written
    found = report.attacker
    assert found is not None
    assert found.method == "PLD"
    assert 0.001 < found.tpr_at_0_1_percent_fpr < found.tpr_at_1_percent_fpr < found.advantage < 1
    page = (toy / "report" / "report.html").read_text()
    assert "the Gaussian inside the Skellam noise" in page


def test_nothing_in_the_files_depends_on_when_or_where(toy: Path) -> None:
    _, files = write_report(toy)
    before = {file: file.read_bytes() for file in files}
    write_report(toy)
    assert {file: file.read_bytes() for file in files} == before
    for content in before.values():
        assert str(toy.parent).encode() not in content


def test_the_json_has_a_version_and_refuses_unknown_parts(written: tuple[Report, Path]) -> None:
    _, toy = written
    data = json.loads((toy / "report" / "report.json").read_text())
    assert data["format"] == FORMAT == "carefl.privacy-report/1"
    Report.model_validate(data)
    for wrong in ({**data, "extra": 1}, {**data, "format": "carefl.privacy-report/2"}):
        with pytest.raises(ValidationError):
            Report.model_validate(wrong)


def test_an_unprotected_run_says_so_in_the_largest_letters(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("open")
    report, _ = write_report(run)
    assert report.verdict == "unprotected"
    assert (report.promise.epsilon, report.attacker) == (None, None)
    refuse_void(report)
    page = (run / "report" / "report.html").read_text()
    assert '<p class="big">NO PRIVACY</p>' in page
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)rem", page)]
    largest = re.search(r"\.alarm \.number \.big \{ font-size: clamp\(.*?([\d.]+)rem\)", page)
    assert largest is not None
    assert float(largest.group(1)) > max(sizes)
    assert "**NO PRIVACY." in (run / "adapter" / "README.md").read_text()
    assert {line.run_epsilon for line in report.clients} == {None}
    assert {line.rounds_paid for line in report.clients} == {4}


def test_the_registry_entry_has_all_blocks_of_tier_three(written: tuple[Report, Path]) -> None:
    _, toy = written
    entry = yaml.safe_load((toy / "report" / "registry.yaml").read_text())
    assert (entry["status"], entry["tier"]) == ("Draft", 3)
    deployment = entry["deployment"]
    assert set(deployment) == {
        "basic",
        "dp_variant",
        "privacy_loss",
        "deployment_model",
        "accounting",
        "implementation",
        "administrative",
    }
    assert deployment["basic"]["data_product_type"] == "Machine learning model"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", deployment["basic"]["publication_date"])
    assert deployment["deployment_model"]["model_name"] == "Federated"
    loss = deployment["privacy_loss"]["privacy_parameters"]
    assert loss["epsilon"] >= events_of(toy)[1]
    assert loss["delta"] == 1e-5
    assert "NOT" in deployment["implementation"]["preprocessing_and_hyperparameter_tuning"]
    assert "several records" in deployment["dp_variant"]["unprotected_quantities"]


def _without(entry: dict[str, Any], path: str) -> dict[str, Any]:
    *blocks, name = path.split(".")
    inner = entry
    for block in blocks:
        inner = inner[block]
    del inner[name]
    return entry


def test_a_registry_entry_that_breaks_its_schema_is_refused_by_field(written: tuple[Report, Path]) -> None:
    report, toy = written
    text = (toy / "report" / "registry.yaml").read_text()
    check_registry_entry(yaml.safe_load(text))
    for path in (
        "tier",
        "deployment.accounting",
        "deployment.basic.data_curators",
        "deployment.privacy_loss.privacy_unit",
        "deployment.privacy_loss.privacy_parameters.delta",  # an epsilon means nothing without it
        "deployment.implementation.mechanisms",
    ):
        *_, name = path.split(".")
        with pytest.raises(RunError, match=name):
            check_registry_entry(_without(yaml.safe_load(text), path))
    for old, new, named in (
        ("status: Draft", "status: Approved", "status"),
        ("model_name: Federated", "model_name: Federal", "deployment_model.model_name"),
        ("status: Draft", "status: Draft\nmood: good", "mood"),
        ("epsilon: ", "epsilon: -", "privacy_parameters.epsilon"),
        ("Non-interactive", "''", "access_type"),
    ):
        assert old in text
        with pytest.raises(RunError, match=named):
            check_registry_entry(yaml.safe_load(text.replace(old, new, 1)))
    # What the page writes goes through the same check: a run without a date makes no entry.
    undated = report.model_copy(update={"run": report.run.model_copy(update={"last_entry": "yesterday"})})
    with pytest.raises(RunError, match="publication_date"):
        registry_entry(undated)
    # A void report must take the place of an earlier one, and is never held up.
    assert "yesterday" in registry_entry(undated.model_copy(update={"verdict": "void", "attacker": None}))


def test_the_readme_keeps_what_others_wrote(written: tuple[Report, Path]) -> None:
    report, _ = written
    once = put_into_readme("---\nbase_model: some/base\ntags:\n- lora\n---\n\n# Mine\n\nHand-written.\n", report)
    front, body = once.split("---\n")[1:3]
    facts = yaml.safe_load(front)
    assert (facts["base_model"], facts["tags"]) == ("some/base", ["lora"])
    assert facts["differential_privacy"]["verdict"] == "accounted"
    assert "Hand-written." in body
    longer = once + "\nAfterwards.\n"
    assert put_into_readme(longer, report) == longer
    void = report.model_copy(update={"verdict": "void", "reasons": ["A reason."], "attacker": None})
    text = put_into_readme(longer, void)
    assert text.count("# carefl-privacy: begin") == text.count("<!-- carefl-privacy: begin") == 1
    assert yaml.safe_load(text.split("---\n")[1])["differential_privacy"]["verdict"] == "void"
    for words in ("Hand-written.", "Afterwards.", "A reason."):
        assert words in text
    assert "**epsilon" not in text


def test_a_readme_without_front_matter(written: tuple[Report, Path]) -> None:
    text = put_into_readme("# Mine\n\n---\n\nA line above.\n", written[0])
    assert yaml.safe_load(text.split("---\n")[1])["differential_privacy"]["unit"] == "record"
    assert "# Mine\n\n---\n\nA line above.\n" in text


def test_an_adapter_without_a_readme_gets_one(written: tuple[Report, Path]) -> None:
    report, run = written
    text = (run / "adapter" / "README.md").read_text()
    assert text == put_into_readme("", report)
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "peft"


@pytest.mark.parametrize(
    "text",
    ["<!-- carefl-privacy: begin -->\n", "---\na: [\n---\n", "---\n- a\n---\n", "---\n# carefl-privacy: end\n---\n"],
)
def test_a_readme_that_cannot_take_the_block(written: tuple[Report, Path], text: str) -> None:
    with pytest.raises(RunError, match=r"README\.md"):
        put_into_readme(text, written[0])


def test_what_a_run_says_of_itself_cannot_become_markup(toy: Path) -> None:
    config = toy / "config.yaml"
    words = "<script>alert(1)</script>|x"
    config.write_text(config.read_text().partition("\n")[2].replace("source: synthetic", f"source: '{words}'"))
    write_report(toy)
    assert "<script" not in (toy / "report" / "report.html").read_text()
    assert "<script" not in (toy / "report" / "card.md").read_text()


def test_a_weak_run_is_still_reported(weak: Path) -> None:
    """Epsilon 900 may be asked for; what it means must not break the report."""
    report, _ = write_report(weak)
    assert report.verdict == "accounted"
    assert report.promise.strength == "weak"
    assert report.attacker is not None
    assert report.attacker.mu is None
    assert report.attacker.tpr_at_1_percent_fpr > 0.99
    page = (weak / "report" / "report.html").read_text()
    assert "unbounded" in page
    assert '<p class="word">weak</p>' in page
