"""The words of ``carefl-secure ledger``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.privacy import Ledger
from carefl_secure.rounding import round_up
from tests.support.ledgers import EVENT, PLAN, spend


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with a server's and three clients' ledgers, four rounds each."""
    folder = tmp_path / "one"
    for name in ("ledger.jsonl", *(f"clients/{i}/ledger.jsonl" for i in range(3))):
        spend(folder / name, run="one", rounds=4, released=False)
    (folder / "plan.json").write_text(json.dumps({"privacy": PLAN.to_json()}))
    return folder


def ledger(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, words)])


def test_whole_chains(run: Path) -> None:
    result = ledger("verify", run)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("ok") and "5 entries" in line for line in lines)
    assert Ledger(run / "ledger.jsonl").head() in lines[0]


def test_the_broken_entry_is_named_and_the_others_are_still_checked(run: Path) -> None:
    path = run / "clients" / "1" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":3', '"round":8'))
    result = ledger("verify", run)
    assert result.exit_code == 23
    marks = [line.split()[0] for line in result.stdout.splitlines()]
    assert marks == ["ok", "ok", "BROKEN", "ok"]
    assert "changed at entry 3" in result.stderr
    assert "clients/1" in result.stderr


def test_verify_as_json(run: Path) -> None:
    found = json.loads(ledger("verify", run, "--json").stdout)
    assert [one["whole"] for one in found] == 4 * [True]
    assert found[0] == {
        "path": str(run / "ledger.jsonl"),
        "whole": True,
        "entries": 5,
        "head": Ledger(run / "ledger.jsonl").head(),
    }
    path = run / "clients" / "1" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":3', '"round":8'))
    result = ledger("verify", run, "--json")
    assert result.exit_code == 23
    broken = json.loads(result.stdout)[2]
    assert broken["whole"] is False
    assert "changed at entry 3" in broken["error"]


def test_a_head_seen_earlier(run: Path) -> None:
    path = run / "ledger.jsonl"
    head = Ledger(path).head()
    Ledger(path).append("note", {"more": 1})
    assert ledger("verify", path, "--head", head).exit_code == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # a cut of whole entries breaks no chain
    assert ledger("verify", path).exit_code == 0
    result = ledger("verify", path, "--head", head)
    assert result.exit_code == 23
    assert "no longer holds" in result.stderr
    assert ledger("verify", run, "--head", head).exit_code == 23


@pytest.mark.parametrize("verb", ["verify", "show", "recover"])
def test_nothing_there(tmp_path: Path, verb: str) -> None:
    for path in (tmp_path, tmp_path / "absent.jsonl"):
        result = ledger(verb, path)
        assert result.exit_code == 23
        assert "give a ledger file or a run folder" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_show(run: Path) -> None:
    result = ledger("show", run)
    assert result.exit_code == 0
    whole = Ledger(run / "ledger.jsonl").epsilon(1e-6)
    assert result.stdout.count(f"epsilon {round_up(whole)} at delta 1e-06 for 4 spends") == 4
    assert "Skellam, noise multiplier 1, sample rate 0.1" in result.stdout
    other = ledger("show", run / "ledger.jsonl", "--delta", "1e-4")
    cheaper = Ledger(run / "ledger.jsonl").epsilon(1e-4)
    assert f"epsilon {round_up(cheaper)} at delta 0.0001" in other.stdout


def test_show_as_json(run: Path) -> None:
    found = json.loads(ledger("show", run, "--json").stdout)
    assert len(found) == 4
    first = found[0]
    assert first["identity"] == {"client": "one"}
    assert first["epsilon"] == Ledger(run / "ledger.jsonl").epsilon(1e-6)
    assert first["delta"] == 1e-6
    assert first["spends"][0]["event"] == EVENT.times(4).to_json()
    assert first["head"] == Ledger(run / "ledger.jsonl").head()


def test_show_refuses_a_broken_ledger(run: Path) -> None:
    path = run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":3', '"round":8'))
    result = ledger("show", path)
    assert result.exit_code == 23
    assert result.stdout == ""


def test_recover_only_when_asked(run: Path) -> None:
    path = run / "clients" / "2" / "ledger.jsonl"
    torn = path.read_bytes()[:-10]
    path.write_bytes(torn)
    for verb in ("verify", "show"):
        result = ledger(verb, path)
        assert result.exit_code == 23
        assert "unfinished line" in result.stderr
        assert path.read_bytes() == torn
    result = ledger("recover", path)
    assert result.exit_code == 0
    assert "bytes of an unfinished line cut off" in result.stdout
    assert ledger("verify", path).exit_code == 0
    assert "cut off 1 times" in ledger("show", path).stdout
    again = path.read_bytes()
    assert "nothing to cut" in ledger("recover", path).stdout
    assert path.read_bytes() == again


def test_recover_does_not_mend_tampering(run: Path) -> None:
    path = run / "ledger.jsonl"
    text = path.read_text().replace('"round":3', '"round":8')
    path.write_text(text)
    assert ledger("recover", path).exit_code == 23
    assert path.read_text() == text
