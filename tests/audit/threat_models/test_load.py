"""The threat models of this repository, and what ``check`` says of broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from carefl_secure.audit.threat_models import (
    ATLAS,
    ATTACK_NAMES,
    LINDDUN,
    STRIDE,
    check_models,
    find_models,
    load_models,
    named,
)
from carefl_secure.cli.app import app
from carefl_secure.errors import ConfigError
from carefl_secure.report.render.page import threat_models_page

ROOT = Path(__file__).parents[3]
MODELS = load_models(ROOT / "threat_models")
ADVERSARIES = {
    "honest-but-curious-server",
    "active-server",
    "colluding-clients",
    "curious-client",
    "key-holder",
    "network-observer",
    "adapter-user",
    "poisoning-client",
    "stolen-disk",
}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of a folder with one model whose first threat is changed."""

    def make(**changes: object) -> Path:
        content = yaml.safe_load((ROOT / "threat_models/adapter-user.yaml").read_text())
        content["threats"][0].update(changes)
        folder = tmp_path / "threat_models"
        folder.mkdir(exist_ok=True)
        (tmp_path / "tests").mkdir(exist_ok=True)
        (folder / "adapter-user.yaml").write_text(yaml.safe_dump(content))
        return folder

    return make


def test_every_adversary_is_there_and_points_to_what_exists() -> None:
    assert {model.name for model in MODELS} == ADVERSARIES
    assert check_models(MODELS, ROOT) == []


def test_what_is_not_defended_is_said() -> None:
    open_ends = [t for m in MODELS for t in m.threats if t.defended == "no"]
    assert any("Fill the roster" in t.text for t in open_ends)
    assert any("control plane" in t.text and t.defended == "partly" for m in MODELS for t in m.threats)
    assert all(t.residual for m in MODELS for t in m.threats)


def test_every_attack_measures_some_threat() -> None:
    assert {a for m in MODELS for a in m.attacks} == set(ATTACK_NAMES)


def test_the_page_is_made_from_the_files() -> None:
    page = (ROOT / "docs/threat-models.md").read_text(encoding="utf-8")
    made = threat_models_page(MODELS, stride=STRIDE, linddun=LINDDUN, atlas=ATLAS)
    assert page == made, "run: carefl-secure threat-model render --out docs/..."
    assert page.count("```mermaid") == len(MODELS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tests": ["tests/audit/threat_models/test_load.py::test_nowhere"]}, "test_nowhere"),
        ({"tests": ["tests/audit/test_nowhere.py::test_x"]}, "test_nowhere"),
        ({"tests": ["README.md::test_x"]}, "README"),
        ({"keys": ["privacy.epsilom"]}, "privacy.epsilom"),
        ({"attacks": ["membershp"]}, "membershp"),
        ({"tests": []}, "no test holds"),
        ({"nist": []}, "NIST"),
        ({"stride": [], "linddun": []}, "letter"),
    ],
)
def test_check_fails_on_what_does_not_exist(
    broken: Callable[..., Path], changes: dict[str, object], text: str
) -> None:
    (fault,) = check_models(load_models(broken(**changes)), ROOT)
    assert fault.startswith("adapter-user: ") and text in fault


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": ["X"]},
        {"linddun": ["?"]},
        {"atlas": ["AML.T9999"]},
        {"nist": ["being evil"]},
        {"defended": "maybe"},
        {"residual": None},
        {"colour": "red"},
        {"id": "attribute inference"},
    ],
)
def test_what_is_not_of_the_schema_is_refused(broken: Callable[..., Path], changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"adapter-user\.yaml"):
        load_models(broken(**changes))


def test_names(tmp_path: Path) -> None:
    assert named(MODELS, "stolen-disk").position == "disk"
    with pytest.raises(ConfigError, match="there are active-server"):
        named(MODELS, "nobody")
    with pytest.raises(ConfigError, match="no threat models"):
        find_models(tmp_path)
    with pytest.raises(ConfigError, match="holds no tests"):
        check_models(MODELS, tmp_path)
    (tmp_path / "other.yaml").write_text((ROOT / "threat_models/stolen-disk.yaml").read_text())
    with pytest.raises(ConfigError, match="one name"):
        load_models(tmp_path)
    (tmp_path / "other.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="no threat model"):
        load_models(tmp_path)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["threat-model", *words])
    return result.exit_code, result.output


def test_the_commands(broken: Callable[..., Path], tmp_path: Path) -> None:
    code, text = run("check")
    assert code == 0 and "9 threat models" in text
    code, text = run("list", "--json")
    assert code == 0 and {row["name"] for row in yaml.safe_load(text)} == ADVERSARIES
    code, text = run("show", "active-server")
    assert code == 0 and "control plane" in text and "[defended: no]" in text
    code, text = run("show", "active-server", "--json")
    assert code == 0 and yaml.safe_load(text)["position"] == "server"
    code, text = run("check", "--dir", str(broken(keys=["privacy.epsilom"])))
    assert code == 2 and "privacy.epsilom" in text
    code, _ = run("render", "--out", str(tmp_path / "page.md"))
    assert code == 0 and "# Threat models" in (tmp_path / "page.md").read_text()
