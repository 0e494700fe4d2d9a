"""The commands of a deployment: provision, status, doctor, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.federation.engines import checkup

runner = CliRunner()
SITES = "name: t\nclients: {a: /x, b: /x, c: /x}\ndays: 2\n"


def test_provision_writes_a_kit_for_each_and_refuses_to_write_over_them(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    words = ["provision", str(tmp_path / "sites.yaml"), "--out", str(tmp_path / "kits")]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    for name in "abc":
        home = tmp_path / "kits" / "sites" / name
        assert json.loads((home / "kit.json").read_text())["data"] == "/x"
        assert (home / "start.sh").stat().st_mode & 0o111
        assert "ExecStart" in (home / "carefl.service").read_text()
    assert runner.invoke(app, words).exit_code == 40


def test_an_expired_or_missing_kit_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    out = tmp_path / "kits"
    runner.invoke(app, ["provision", str(tmp_path / "sites.yaml"), "--out", str(out)])
    kit = out / "sites" / "a"
    about = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**about, "expires": 1.0}))
    for path in (kit, tmp_path):
        result = runner.invoke(app, ["node", "start", str(path)])
        assert result.exit_code == 40
        assert not (path / "logs").exists()
    assert runner.invoke(app, ["server", "start", str(tmp_path)]).exit_code == 40


def test_a_second_server_from_one_kit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    out = tmp_path / "kits"
    runner.invoke(app, ["provision", str(tmp_path / "sites.yaml"), "--out", str(out)])
    (out / "server" / "lock").touch()
    result = runner.invoke(app, ["server", "start", str(out / "server")])
    assert result.exit_code == 41
    assert (out / "server" / "lock").exists()  # the other server's


def test_local_nodes_go_with_the_superlink_only() -> None:
    assert runner.invoke(app, ["train", "--local-nodes", "3"]).exit_code == 2
    assert runner.invoke(app, ["train", "--engine", "mars"]).exit_code == 2


def test_status_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert runner.invoke(app, ["status", str(tmp_path)]).exit_code == 40
    (tmp_path / "config.yaml").write_text("")
    result = runner.invoke(app, ["status", str(tmp_path), "--json"])
    found = json.loads(result.stdout)
    assert found["state"] == "not begun" and found["rounds_paid"] == 0


def test_doctor_tells_of_every_check_and_fails_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)] == list(checkup.CHECKS)

    def broken() -> str:
        raise ArithmeticError("the sum is wrong")

    monkeypatch.setattr(checkup, "CHECKS", {"packages": lambda: "fine", "sum": broken})
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 41
    assert "FAIL  sum: ArithmeticError: the sum is wrong" in result.stdout


def test_the_check_of_noise_sees_noise_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkup.SkellamSampler
    monkeypatch.setattr(checkup, "SkellamSampler", lambda variance: real(variance * 0.8))
    with pytest.raises(ArithmeticError, match="came with"):
        checkup.CHECKS["noise"]()
