"""Every YAML that ships loads, and every command in its header is one that the program takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import typer

from carefl_secure.cli import app
from carefl_secure.config import load_config
from carefl_secure.config.experiment import cells_of, load_experiment

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))
TASKS = sorted((ROOT / "configs" / "tasks").glob("*.yaml"))


def name(path: Path) -> str:
    return path.stem


def commands(path: Path) -> list[list[str]]:
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("carefl-secure ")]


def parse(words: list[str]) -> None:
    """Parse a command as the program would, without running it."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="carefl-secure")
    while isinstance(command, click.Group):
        found, words = words[0], words[1:]
        inner = command.get_command(context, found)
        assert inner is not None, f"there is no command {found!r}"
        command = inner
        if not isinstance(command, click.Group):
            command.make_context(found, list(words), parent=context)


def test_there_is_something_to_check() -> None:
    assert {p.stem for p in EXPERIMENTS} >= {"carefl_ablations", "parity", "privacy_frontier", "two_stage"}
    assert len(TASKS) >= 3
    deploy = (ROOT / "configs" / "deploy").glob("*.yaml")  # tests/deployment/test_recipes.py
    assert set((ROOT / "configs").rglob("*.yaml")) == {*EXPERIMENTS, *TASKS, *deploy}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_every_experiment_is_sound(path: Path) -> None:
    asked = load_experiment(path)
    cells = cells_of(asked, Path("runs"))
    assert asked.name == path.stem
    assert len(cells) == len(asked.variants) * len(asked.seeds)
    assert len(asked.seeds) >= 3
    settings = {repr((c.config.model_dump(exclude={"run"}), c.variant.kind, c.scored.data.labels))
                for c in cells}  # fmt: skip
    assert len(settings) == len(cells)  # no two cells are the same run


@pytest.mark.parametrize("path", TASKS, ids=name)
def test_every_task_is_sound(path: Path) -> None:
    config = load_config(path)
    assert config.model.base.startswith("HuggingFaceTB/SmolVLM2-")
    assert not config.data.synthetic
    assert config.privacy.unit != "none"
    assert config.run.name is not None


@pytest.mark.parametrize("path", [*EXPERIMENTS, *TASKS], ids=name)
def test_the_commands_of_the_header_parse_and_name_this_file(path: Path) -> None:
    found = commands(path)
    assert found
    for words in found:
        parse(words)
    named = [word for words in found for word in words if word.startswith("configs/")]
    assert str(path.relative_to(ROOT)) in named
    assert all((ROOT / word).is_file() for word in named)


@pytest.mark.parametrize("words", [["trian"], ["train", "--confg", "x"], ["evaluate"]])
def test_a_wrong_command_would_be_seen(words: list[str]) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        parse(words)
