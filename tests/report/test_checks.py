"""Runs that were broken on purpose: every one must be found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.errors import PrivacyError, RunError
from carefl_secure.privacy import Entry, Ledger, event_from_json
from carefl_secure.report import refuse_void, write_report
from carefl_secure.report.build import build_report
from carefl_secure.report.run_record import read_run

Copy = Callable[[str], Path]


def test_a_void_report_is_void_in_every_file(toy: Path) -> None:
    good, _ = write_report(toy)
    assert good.verdict == "accounted"
    (toy / "clients" / "2" / "ledger.jsonl").unlink()
    report, files = write_report(toy)
    assert (report.verdict, good.verdict) == ("void", "accounted")
    assert all(file.is_file() for file in files)
    page = (toy / "report" / "report.html").read_text()
    assert '<p class="big">VOID</p>' in page
    assert "holds a spend" in page or "hold a spend" in page
    assert json.loads((toy / "report" / "report.json").read_text())["verdict"] == "void"
    for name in ("report/card.md", "adapter/README.md"):
        assert "**VOID." in (toy / name).read_text()
        assert "**epsilon" not in (toy / name).read_text()
    assert "privacy_parameters: {}" in (toy / "report" / "registry.yaml").read_text()
    with pytest.raises(PrivacyError, match="void") as raised:
        refuse_void(report)
    assert raised.value.exit_code == 22


def weaker(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "variance": event["variance"] / 4}


def with_weaker_event(entry: Entry) -> dict[str, Any]:
    payload = dict(entry.payload)
    if entry.kind == "spend":
        payload["event"] = weaker(payload["event"])
    return payload


def test_an_edited_server_ledger(toy: Path, cheat: Any) -> None:
    path = toy / "ledger.jsonl"
    path.write_text(path.read_text().replace('"survivors":6', '"survivors":5', 1))
    assert "ledger_chains" in cheat.failed(toy)
    report, _ = build_report(read_run(toy))
    assert any("entry 2" in reason for reason in report.reasons)
    assert report.accounting.recomputed_epsilon is None


def test_an_edited_client_ledger(toy: Path, cheat: Any) -> None:
    path = toy / "clients" / "3" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":2', '"round":7'))
    assert cheat.failed(toy) == {"ledger_chains", "clients_paid"}
    report, _ = build_report(read_run(toy))
    assert [c.chain_whole for c in report.clients] == [True, True, True, False, True, True]


def test_a_torn_ledger(toy: Path, cheat: Any) -> None:
    path = toy / "clients" / "0" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert "ledger_chains" in cheat.failed(toy)


def test_a_cut_entry_in_the_middle(toy: Path, cheat: Any) -> None:
    path = toy / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert "ledger_chains" in cheat.failed(toy)


def test_whole_entries_cut_off_the_end_of_the_server_ledger(toy: Path, cheat: Any) -> None:
    path = toy / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert "releases_paid" in cheat.failed(toy)


def test_less_noise_in_all_ledgers_than_in_the_plan(toy: Path, cheat: Any) -> None:
    for path in (toy / "ledger.jsonl", *toy.glob("clients/*/ledger.jsonl")):
        cheat.forge(path, with_weaker_event)
    found = cheat.failed(toy)
    assert {"events", "target", "claims"} <= found
    assert "ledger_chains" not in found


def test_less_noise_in_the_plan_too(toy: Path, cheat: Any) -> None:
    for path in (toy / "ledger.jsonl", *toy.glob("clients/*/ledger.jsonl")):
        cheat.forge(path, with_weaker_event)
    cheat.edit_json(toy / "plan.json", lambda plan: plan.update(event=weaker(plan["event"])))
    assert {"plan_kept", "encoding", "target", "claims"} <= cheat.failed(toy)


def test_more_noise_in_the_ledgers_than_was_added(toy: Path, cheat: Any) -> None:
    def stronger(entry: Entry) -> dict[str, Any]:
        payload = dict(entry.payload)
        if entry.kind == "spend":
            payload["event"] = {**payload["event"], "variance": payload["event"]["variance"] * 4}
        return payload

    for path in (toy / "ledger.jsonl", *toy.glob("clients/*/ledger.jsonl")):
        cheat.forge(path, stronger)
    assert cheat.failed(toy) == {"events"}


def test_a_client_that_paid_for_another_event(toy: Path, cheat: Any) -> None:
    cheat.forge(toy / "clients" / "5" / "ledger.jsonl", with_weaker_event)
    reasons = build_report(read_run(toy))[0].reasons
    assert any("lient 5 charged another event" in reason for reason in reasons)
    assert "events" in cheat.failed(toy)


@pytest.mark.parametrize(
    ("key", "value"), [("max_colluders", 0), ("clipping_norm", 0.5), ("public_records", 10_000), ("rounds", 3)]
)
def test_an_edited_plan(toy: Path, key: str, value: float, cheat: Any) -> None:
    cheat.edit_json(toy / "plan.json", lambda plan: plan["privacy"].update({key: value}))
    assert "plan_kept" in cheat.failed(toy)


@pytest.mark.parametrize(("key", "by"), [("l2_sensitivity", 2.0), ("scale", 2.0), ("noise_clients", 2)])
def test_an_encoding_that_asks_for_more_than_the_event_states(toy: Path, key: str, by: float, cheat: Any) -> None:
    (toy / "checkpoint" / "state.npz").unlink()  # so that nothing else can tell
    cheat.edit_json(toy / "plan.json", lambda p: p["encoding"].update({key: p["encoding"][key] * by}))
    assert "encoding" in cheat.failed(toy)


def test_a_missing_client_ledger(toy: Path, cheat: Any) -> None:
    (toy / "clients" / "2" / "ledger.jsonl").unlink()
    assert cheat.failed(toy) == {"clients_paid"}


def test_a_client_ledger_of_another_run(toy: Path, cheat: Any) -> None:
    cheat.forge(
        toy / "clients" / "2" / "ledger.jsonl",
        lambda e: {**e.payload, "run": "other"} if e.kind == "spend" else dict(e.payload),
    )
    assert cheat.failed(toy) == {"clients_paid"}


def test_a_round_that_was_never_paid_for(toy: Path, cheat: Any) -> None:
    def forget(entry: Entry) -> dict[str, Any] | None:
        lost = entry.kind == "spend" and entry.payload["round"] == 2
        return None if lost else dict(entry.payload)

    cheat.forge(toy / "ledger.jsonl", forget)
    assert {"releases_paid"} <= cheat.failed(toy)


@pytest.mark.parametrize("claim", [0.5, 7.9, "none", None, True])
def test_metrics_that_claim_less(toy: Path, claim: object, cheat: Any) -> None:
    cheat.edit_rows(toy, lambda row: row.update(epsilon=claim))
    assert cheat.failed(toy) == {"claims"}


def test_a_claim_that_is_no_number(toy: Path, cheat: Any) -> None:
    cheat.edit_rows(toy, lambda row: row.update(epsilon=float("nan")))
    with pytest.raises(RunError, match="one JSON object of figures per line"):
        read_run(toy)


def test_a_claim_of_more_is_no_fault(toy: Path, cheat: Any) -> None:
    cheat.edit_rows(toy, lambda row: row.update(epsilon=row["epsilon"] + 0.1))
    assert cheat.passes(toy)


def test_a_sum_over_too_few(toy: Path, cheat: Any) -> None:
    def fewer(entry: Entry) -> dict[str, Any]:
        payload = dict(entry.payload)
        if entry.kind == "release" and payload["round"] == 3:
            payload["survivors"] = 2
        return payload

    cheat.forge(toy / "ledger.jsonl", fewer)
    assert cheat.failed(toy) == {"min_survivors"}  # the figures still say six
    cheat.edit_rows(toy, lambda row: row.update(survivors=2 if row["round"] == 3 else 6))
    assert cheat.failed(toy) == {"min_survivors"}


@pytest.mark.parametrize("share", [0.9, 0.5, 0.0])
def test_sums_shorter_than_their_noise(toy: Path, share: float, cheat: Any) -> None:
    """A run without signal lies at the noise's own length; any shorter, and noise is missing."""
    cheat.edit_rows(toy, lambda row: row.update(gradient_norm=share * row["noise_norm"]))
    assert cheat.failed(toy) == {"noise"}


def test_sums_as_long_as_their_noise_pass(toy: Path, cheat: Any) -> None:
    cheat.edit_rows(toy, lambda row: row.update(gradient_norm=row["noise_norm"]))
    assert cheat.passes(toy)


def test_a_norm_that_is_no_number(toy: Path, cheat: Any) -> None:
    cheat.edit_rows(toy, lambda row: row.update(gradient_norm=float("nan")))
    with pytest.raises(RunError, match="one JSON object of figures per line"):
        read_run(toy)


def test_noise_that_anyone_can_guess(toy: Path, cheat: Any) -> None:
    config = toy / "config.yaml"
    config.write_text(
        config.read_text()
        .partition("\n")[2]
        .replace("unsafe_deterministic_noise: false", "unsafe_deterministic_noise: true")
    )
    assert cheat.failed(toy) == {"keys"}


def test_more_rounds_than_planned(toy: Path, cheat: Any) -> None:
    def renumber(entry: Entry) -> dict[str, Any]:
        return dict(entry.payload)

    path = toy / "ledger.jsonl"
    text = path.read_bytes()
    cheat.forge(path, renumber)
    assert path.read_bytes() == text  # forging without a change changes nothing
    plan = json.loads((toy / "plan.json").read_text())
    Ledger(path).spend(event_from_json(plan["event"]), 100.0, 1e-5, {"run": "toy", "round": 5, "unit": "record"})
    assert {"rounds_planned", "target"} <= cheat.failed(toy)


def test_an_unprotected_round_in_a_protected_run(toy: Path, cheat: Any) -> None:
    Ledger(toy / "ledger.jsonl").append("note", {"run": "toy", "round": 5, "unprotected": True})
    assert "events" in cheat.failed(toy)


def test_an_unprotected_run_can_be_void_too(copy_run: Copy, cheat: Any) -> None:
    run = copy_run("open")
    path = run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":1', '"round":9', 1))
    assert "ledger_chains" in cheat.failed(run)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("plan.json", "{", RunError),
        ("plan.json", "[]", RunError),
        ("plan.json", "{}", RunError),
        ("metrics.jsonl", '{"round": "x"}\n', RunError),
        ("metrics.jsonl", "[1]\n", RunError),
        ("config.yaml", "a: [", RunError),
        ("config.yaml", "word", RunError),
        ("config.yaml", "", RunError),
        ("config.yaml", "data:\n  source: synthetic\n", RunError),  # cut off
        ("config.yaml", "run: {seed: 1, seed: 2}\nunsafe_deterministic_noise: false\n", RunError),
        ("checkpoint/state.npz", "no archive", RunError),
    ],
)
def test_a_file_that_cannot_be_read(toy: Path, name: str, text: str, error: type[Exception], cheat: Any) -> None:
    (toy / name).write_text(text)
    with pytest.raises(error, match=name.split("/")[-1]):
        write_report(toy)
    assert not (toy / "report").exists()


@pytest.mark.parametrize("place", [0, 30, 100, 500, -100, -2])
def test_settings_that_are_cut_off_or_have_a_changed_bit(toy: Path, place: int) -> None:
    whole = bytearray((toy / "config.yaml").read_bytes())
    flipped = whole[:place] + bytes([whole[place] ^ 2]) + whole[place:][1:]
    for damaged in (whole[:place], flipped) if place else (b"",):
        (toy / "config.yaml").write_bytes(damaged)
        with pytest.raises(RunError, match=r"config\.yaml"):
            write_report(toy)
    assert not (toy / "report").exists()


def test_the_command_fails_where_a_finished_run_lacks_its_adapter(toy: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(toy)])
    assert done.exit_code == RunError.exit_code
    assert (toy / "report" / "report.html").is_file()
    (toy / "adapter" / "adapter_model.safetensors").touch()
    assert CliRunner().invoke(app, ["report", str(toy)]).exit_code == 0


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "ledger.jsonl"])
def test_a_file_that_is_missing(toy: Path, name: str, cheat: Any) -> None:
    (toy / name).unlink()
    with pytest.raises(RunError, match=name):
        write_report(toy)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("privacy", {"noise_multiplier": 0.0}),
        ("privacy", {"min_survivors": 1}),
        ("privacy", {"unheard": 1}),
        ("event", {"kind": "magic"}),
        ("event", {"variance": -1.0}),
        ("encoding", {"scale": "x"}),
        ("encoding", {"dimension": 0}),
    ],
)
def test_a_plan_that_keeps_no_promise(toy: Path, part: str, changes: dict[str, Any], cheat: Any) -> None:
    cheat.edit_json(toy / "plan.json", lambda plan: plan[part].update(changes))
    with pytest.raises(PrivacyError, match="no promise"):
        write_report(toy)
