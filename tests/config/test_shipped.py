"""Files that come with the package, by a short name."""

from __future__ import annotations

from pathlib import Path

import pytest

import carefl_secure
from carefl_secure.config import load_config
from carefl_secure.config.experiment import load_experiment
from carefl_secure.config.load import resolve_shipped, shipped_folder
from carefl_secure.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_a_shipped_file_is_found_by_its_short_name() -> None:
    assert load_config(Path("carefl:tasks/emotic_smolvlm2_256m.yaml")).run.name == "emotic-256m"
    assert load_experiment(Path("carefl:experiments/parity.yaml")).name == "parity"
    assert resolve_shipped(Path("some/other.yaml")) == Path("some/other.yaml")


@pytest.mark.parametrize("name", ["tasks/nothing.yaml", "../pyproject.toml", "deploy/run.yaml"])
def test_any_other_name_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="carefl:tasks/emotic_smolvlm2_256m"):
        load_config(Path(f"carefl:{name}"))


def test_an_installed_package_reads_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carefl_secure"
    own = package / "shipped" / "configs"
    own.mkdir(parents=True)
    (tmp_path / "configs").mkdir()  # another package's folder, next to ours
    monkeypatch.setattr(carefl_secure, "__file__", str(package / "__init__.py"))
    assert shipped_folder("configs") == own
    with pytest.raises(ConfigError, match="reinstall"):
        shipped_folder("threat_models")
    (tmp_path / "pyproject.toml").touch()
    assert shipped_folder("configs") == tmp_path / "configs"
