from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from carefl_secure.cli import app


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an image folder with two splits that share nothing."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("[glad]", "sad"):
            for k in range(2):
                path = tmp_path / split / label / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path)
    return tmp_path


def test_a_sound_corpus(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "imagefolder:" in result.stdout
    assert "nothing is missing or wrong" in result.stdout
    assert "reading the images of train: 4 steps" in result.stderr
    assert run(folder, "--quiet").stderr == ""


def test_faults_are_shown_and_end_with_10(folder: Path) -> None:
    copy = folder / "test" / "sad" / "copy.png"
    copy.write_bytes((folder / "train" / "[glad]" / "0.png").read_bytes())
    result = run(folder)
    assert result.exit_code == 10
    assert "wrong: train and test share 1 images" in result.stdout
    assert "train/[glad]/0.png = test/sad/copy.png" in result.stdout
    assert "nothing is missing" not in result.stdout


def test_json_is_the_whole_of_standard_output(folder: Path) -> None:
    report = json.loads(run(folder, "--json").stdout)
    assert report["kind"] == "imagefolder"
    assert report["sound"] is True
    assert [one["records"] for one in report["splits"]] == [4, 4]
    assert report["shared"][0]["exact"] == 0


def test_options_reach_the_check(folder: Path) -> None:
    result = run(folder, "--labels", "basic")
    assert result.exit_code == 11
    assert "glad" in result.stderr
    assert "client 0, client 1" in run(folder, "--clients", "2").stdout
    assert run(folder, "--clients", "2", "--column", "site").exit_code == 10
    assert run(folder, "--view", "person").exit_code == 2
    assert run(folder, "--clients", "1").exit_code == 2
    assert run(folder / "absent").exit_code == 10


def test_help() -> None:
    assert "check" in CliRunner().invoke(app, ["data", "--help"]).stdout
    assert "--clients" in run("--help").stdout


def test_scipy_waits_until_it_is_needed() -> None:
    code = "import sys, carefl_secure.cli; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
