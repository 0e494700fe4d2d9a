"""``runs list``, ``settings list`` and ``settings show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.cli.completion import COMPLETERS
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


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("settings show privacy.ep", ["privacy.epsilon"]),
        ("settings list pri", ["privacy"]),
        ("train --set privacy.ep", ["privacy.epsilon="]),
        ("train --set privacy.trust=", ["privacy.trust=secagg", "privacy.trust=none"]),
        ("plan --set federation.round", ["federation.rounds="]),
        ("train --engine ", ["inprocess", "ray", "superlink"]),
        ("train --aggregation ", ["pairwise", "committee", "encrypted"]),
        ("train --track w", ["wandb"]),
        ("train --stages c", ["compound"]),
        ("train --config carefl:tasks/emotic", ["carefl:tasks/emotic_smolvlm2_256m.yaml"]),
        ("data check corpus --format raf", ["rafdb", "rafdb-folders"]),
        ("data check corpus --labels ba", ["basic"]),
        ("evaluate --labels fer", ["fer2013"]),
        ("caption syn", ["synthetic"]),
        *(
            (f"{command} ", ["runs/first", "runs/second"])
            for command in ("report", "status", "audit", "predict", "watch")
        ),
        ("train --resume runs/s", ["runs/second"]),
        ("evaluate other/", ["other/third"]),
        ("evaluate runs/[", []),
    ],
)
def test_the_shell_completes_values(
    line: str, offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs/first", "runs/second", "other/third"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "runs" / "no_run").mkdir()
    monkeypatch.chdir(tmp_path)
    words = {"_CAREFL_SECURE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    words["_TYPER_COMPLETE_ARGS"] = f"carefl-secure {line}"
    result = CliRunner().invoke(app, [], prog_name="carefl-secure", env=words)
    assert [one.split("\t")[0] for one in result.stdout.splitlines() if one] == offered


def test_every_completed_parameter_exists() -> None:
    """A renamed option would lose its completion without a word."""
    pending, found = [get_command(app)], set()
    for command in pending:
        pending += getattr(command, "commands", {}).values()
        found |= {one.name for one in command.params}
    assert set(COMPLETERS) <= found
