"""The command that lists and erases stored vision features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.errors import ConfigError
from carefl_secure.model.vision.store import FeatureStore
from carefl_secure.progress import SILENT

RUN = CliRunner()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default folder, with three images of one encoder and one of another."""
    monkeypatch.setenv("CAREFL_CACHE", str(tmp_path))
    for base, count in (("embedded", 3), ("org/model", 1)):
        store = FeatureStore(
            tmp_path / "features", {"base": base, "digest": base, "dtype": "x"}, (2, 4), torch.bfloat16
        )
        store.refresh(SILENT)
        with store.writing() as writer:
            writer.add([bytes([i]) * 32 for i in range(count)], torch.ones(count, 2, 4))
    return tmp_path / "features"


def test_delete_erases_what_list_shows(root: Path) -> None:
    shown = RUN.invoke(app, ["cache", "list"])
    assert "embedded" in shown.stdout
    assert "org/model" in shown.stdout
    found = json.loads(RUN.invoke(app, ["cache", "list", "--json"]).stdout)
    assert found["folder"] == str(root)
    assert {one["base"]: one["images"] for one in found["encoders"]} == {"embedded": 3, "org/model": 1}
    first = next(one["name"] for one in found["encoders"] if one["base"] == "embedded")
    gone = RUN.invoke(app, ["cache", "delete", first[:8]])
    assert gone.exit_code == 0
    assert [one.name for one in root.iterdir()] != [first]
    assert len(list(root.iterdir())) == 1
    assert RUN.invoke(app, ["cache", "delete", "--all"]).exit_code == 0
    assert not list(root.iterdir())
    assert json.loads(RUN.invoke(app, ["cache", "list", "--json"]).stdout)["encoders"] == []
    assert RUN.invoke(app, ["cache", "list"]).exit_code == 0


def test_nothing_is_erased_without_a_name_or_all(root: Path) -> None:
    for given in ([], ["--all", "x"], ["nothing"], [""]):
        assert RUN.invoke(app, ["cache", "delete", *given]).exit_code == ConfigError.exit_code
    assert len(list(root.iterdir())) == 2
