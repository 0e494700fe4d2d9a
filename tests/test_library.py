"""The package as a library: light to import, and every function on one run."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import carefl_secure
from carefl_secure import library
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.runs.summary import RunSummary

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunSummary:
    root = tmp_path_factory.mktemp("library")
    words = ["data.records=160", "federation.rounds=2", "privacy.delta=0.001", "adapter.rank=2"]
    words += [f"model.base={request.getfixturevalue('base')}", f"run.dir={root}"]
    words += [f"data.cache_dir={tmp_path_factory.getbasetemp() / 'corpora'}"]
    return carefl_secure.train(carefl_secure.load_config(None, words), quiet=True)


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, carefl_secure; print(len(dir(carefl_secure)), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = [name for name in done.stdout.split() if name.startswith("carefl_secure")]
    assert mine == ["carefl_secure"]
    assert not {"numpy", "torch", "typer", "pydantic"} & set(done.stdout.split())


def test_it_offers_what_it_names() -> None:
    assert set(carefl_secure.__all__) - {"__version__"} == set(library.__all__)
    for name in carefl_secure.__all__:
        assert getattr(carefl_secure, name) is not None and name in dir(carefl_secure)
    with pytest.raises(AttributeError, match="nosuch"):
        carefl_secure.nosuch  # noqa: B018
    for name in library.__all__:
        if name != "load_config":
            one = getattr(library, name)
            assert one.__doc__ and len(inspect.signature(one).parameters) <= 8, name


def test_a_run_is_trained_scored_reported_and_used(summary: RunSummary) -> None:
    assert "reasonable, not strong" in summary._repr_html_()
    report = carefl_secure.report_run(summary.folder)
    assert report.verdict == "accounted" and "accounted" in report._repr_html_()
    assert report.promise.epsilon == pytest.approx(float(summary.rows[-1]["epsilon"]), rel=1e-9)
    model = carefl_secure.load(summary.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    pictures[1].save(summary.folder / "one.png")
    found = [model.predict(one) for one in (*pictures, summary.folder / "one.png")]
    assert [set(one.scores) for one in found] == [set(model.labels)] * 3
    assert found[1].scores == pytest.approx(found[2].scores) and found[0].scores != found[1].scores
    with pytest.raises(RunError, match="finished"):
        carefl_secure.resume(summary.folder, quiet=True)


def test_an_evaluation_shows_itself(summary: RunSummary) -> None:
    found = carefl_secure.evaluate(summary.folder, quiet=True)
    assert (summary.folder / "evaluation" / "evaluation.json").is_file()
    assert f"<td>{found.figures['mAP']:.3f}</td>" in found._repr_html_()


@pytest.mark.slow
def test_an_audit_shows_itself(summary: RunSummary) -> None:
    found = carefl_secure.audit_run(summary.folder, records=50, canaries=64, quiet=True)
    assert not found.falsified and "membership" in found._repr_html_()


def test_a_budget_shows_itself() -> None:
    found = carefl_secure.budget(delta=1e-5, sample_rate=0.01, noise_multiplier=1.0, rounds=100)
    assert found.solved_for == "epsilon" and "<td>100</td>" in found._repr_html_()


def test_no_run_is_refused(tmp_path: Path) -> None:
    for use in (library.resume, library.evaluate, library.audit_run, library.report_run):
        with pytest.raises(RunError, match="not a run folder"):
            use(tmp_path / "nosuch")
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        carefl_secure.load_config(None, ["privacy.epsilom=3"])


def test_the_page_uses_names_that_exist() -> None:
    text = PAGE.read_text("utf-8")
    used = set(re.findall(r"carefl_secure\.(\w+)\(", text))
    assert used == {"load_config", "train", "report_run", "load"}
    assert used <= set(carefl_secure.__all__)
