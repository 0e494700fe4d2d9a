"""The command: it lists, runs, shows, and answers a failing cell with its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.experiment import run as runs
from carefl_secure.experiment.run import Finished


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    settings = {"name": "x", "question": "Which?", "seeds": [0], "cells": [{"name": "a"}]}
    path.write_text(yaml.safe_dump(settings))
    return path


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["experiment", *map(str, words)])


def test_a_dry_run_lists_cells_and_makes_nothing(file: Path, tmp_path: Path) -> None:
    result = call(file, "--dry-run", "--run-dir", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "a-seed0  train\n")
    assert not (tmp_path / "out").exists()


def test_wrong_settings_stop_before_anything_runs(file: Path, tmp_path: Path) -> None:
    result = call(file, "--set", "adapter.rnk=2", "--run-dir", tmp_path / "out")
    assert result.exit_code == 2 and "adapter.rank" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [None, "it broke"])
def test_results_are_written_and_a_failure_sets_the_code(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    figures = {} if error else {"mAP": 0.5}
    done = [Finished("a", 0, None, 1.0, figures, error)]
    monkeypatch.setattr(runs, "run_cells", lambda *_: done)
    out = tmp_path / "out"
    result = call(file, "--run-dir", out, "--json", "--quiet")
    assert result.exit_code == (40 if error else 0)
    assert json.loads(result.stdout) == json.loads((out / "x" / "results.json").read_text())
    assert ("a-seed0" in result.stderr) == bool(error)
    for name in ("table.md", "table.html"):
        assert ("it broke" in (out / "x" / name).read_text()) == bool(error)
    again = call(file, "--run-dir", out, "--no-resume", "--quiet")
    assert again.exit_code == 40 and "exists" in again.stderr
