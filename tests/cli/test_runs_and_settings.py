"""``runs list``, ``settings list`` and ``settings show``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.config.explain import KNOWN
from carefl_secure.deployment.metrics import run_figures
from carefl_secure.rounding import round_up
from tests.report.conftest import federate


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    federate(root, "one")
    (root / "new").mkdir()
    (root / "new" / "config.yaml").write_text("{}\n")
    (root / "broken").mkdir()
    (root / "broken" / "config.yaml").write_text("{}\n")
    (root / "broken" / "ledger.jsonl").write_text("not a ledger\n")
    (root / "notes").mkdir()
    return root


def test_every_run_is_listed_with_what_it_spent(runs: Path) -> None:
    found = {one["run"]: one for one in json.loads(call("runs", "list", runs, "--json").stdout)}
    assert list(found) == ["broken", "new", "one"]
    price = run_figures(runs / "one")["epsilon"]
    assert found["one"]["epsilon"] == price
    assert found["new"]["state"] == "not begun" and "ledger" in found["broken"]["error"]
    shown = call("runs", "list", runs)
    assert shown.exit_code == 0
    line = next(line for line in shown.stdout.splitlines() if line.strip().startswith("one"))
    assert "4 of 4" in line and round_up(price) in line
    assert "unreadable" in shown.stdout and "broken: " in shown.stdout


def test_no_folder_of_runs(tmp_path: Path) -> None:
    result = call("runs", "list", tmp_path / "nosuch")
    assert result.exit_code == 40 and "run.dir" in result.stderr


def test_every_setting_is_listed_and_explained() -> None:
    found = json.loads(call("settings", "list", "--json").stdout)
    assert [one["key"] for one in found] == list(KNOWN)
    assert all(one["allowed"] and one["default"] and one["meaning"] and "`" not in one["allowed"] for one in found)
    text = call("settings", "show", "privacy.epsilon").stdout
    assert "allowed  number > 0 and ≤ 1,000" in text and "default  8.0" in text
    one = json.loads(call("settings", "show", "privacy.unit", "--json").stdout)
    assert one["allowed"] == "record, person, client, none"
    assert "privacy.delta" in call("settings", "list", "privacy").stdout
    assert "run.dir" not in call("settings", "list", "privacy").stdout


@pytest.mark.parametrize(
    ("words", "said"), [(("show", "rounds"), "federation.rounds"), (("list", "nosuch"), "there is no section")]
)
def test_what_does_not_exist_is_refused(words: tuple[str, ...], said: str) -> None:
    result = call("settings", *words)
    assert result.exit_code == 2 and said in result.stderr


def test_the_shell_completes_keys(monkeypatch: pytest.MonkeyPatch, capsys: Callable[..., object]) -> None:
    environment = {"_CAREFL_SECURE_COMPLETE": "complete_bash", "COMP_WORDS": "carefl-secure settings show privacy.ep"}
    result = CliRunner().invoke(app, [], prog_name="carefl-secure", env={**environment, "COMP_CWORD": "3"})
    assert result.stdout.split() == ["privacy.epsilon"]
