"""The examples that are scripts, a notebook and a walk-through: each runs as its first lines say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PROGRAM = Path(sys.executable).with_name("carefl-secure")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_listed() -> None:
    here = Path(__file__).read_text("utf-8") + Path(__file__).with_name("test_examples.py").read_text("utf-8")
    page = (EXAMPLES.parent / "examples.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        if path.name != "__pycache__":
            assert path.stem in here and path.name in page, path.name


def test_an_optimizer_of_ones_own_learns_within_the_budget(tmp_path: Path) -> None:
    module = load("own_optimizer")
    before, after, epsilon = module.train(module.SignMomentum(0.1), tmp_path)
    assert after < 0.6 * before and 7.0 < epsilon <= 8.0
    again = module.SignMomentum(0.1)
    again.load({"average": [1.0, -2.0]})
    assert list(again.state()["average"]) == [1.0, -2.0]


@pytest.mark.slow
def test_captions_of_ones_own_are_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.records=60", "data.labels=basic")
    load("own_captioner").main(tmp_path / "captions", *settings)
    said = capsys.readouterr().out
    assert "private: 60 captions made" in said
    (command,) = re.findall(r"^carefl-secure (train .*)$", said, re.MULTILINE)
    words = [*command.split(), "--rounds", "1", "--clients", "3", "--yes", "--quiet", "--run-dir", str(tmp_path)]
    for one in (*settings, "privacy.delta=1e-2", "simulation.dropout=0"):
        words += ["--set", one]
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_three_sites_are_rehearsed(tmp_path: Path) -> None:
    paths = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", str(EXAMPLES / "three_sites.sh"), str(tmp_path)]
    done = subprocess.run(
        words, env={**os.environ, "PATH": paths}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "rehearsal" / "report" / "dpia.html").is_file()
    assert len(list((tmp_path / "rehearsal").rglob("ledger.jsonl"))) >= 4


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "first_run.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) >= 5  # budget, summary, evaluation, report and the page show themselves
    assert "reasonable, not strong" in "".join(shown)
