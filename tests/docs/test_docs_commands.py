"""Every command that a page shows: that it parses, and that it does what the page says."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.config import load_config
from carefl_secure.config.experiment import load_experiment
from tests.support import pages
from tests.support.pages import ROOT, Command, commands, name_of

# Commands that answer in a second or two; every one that a page shows is run in the quick suite.
CHEAP = {"budget", "data check", "threat-model check", "threat-model list", "threat-model show"}
# What a README command is cut down to where a test runs it.
SMALL = ("--rounds", "2", "--set", "data.records=640", "--set", "privacy.delta=1e-4")
HUB = ("HuggingFaceTB/", "llava-hf/")


def with_commands(run: bool) -> list[Path]:
    return [page for page in pages.PAGES if any(c.run or not run for c in commands(page))]


EVERY = sorted({c.words: c for page in pages.PAGES for c in commands(page)}.items())
COMMANDS = [command for _, command in EVERY]


def shown(command: Command) -> str:
    return " ".join(command.words)[:90]


def fill(words: tuple[str, ...], **values: str) -> list[str]:
    """Put real values where a page leaves a placeholder."""
    return [values.get(word.strip("<>"), word) for word in words]


def test_there_are_commands_to_check() -> None:
    assert {"README.md", "docs/index.md"} <= {name_of(page) for page in with_commands(run=False)}
    assert len(with_commands(run=True)) >= 5
    assert {command.leaf for command in COMMANDS} >= CHEAP


@pytest.mark.parametrize("command", COMMANDS, ids=shown)
def test_every_command_parses(command: Command) -> None:
    if command.words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert command.words[1] in targets
    elif command.words[1:2] in (("COMMAND",), ("--version",)) or "..." in command.words:
        assert command.inline  # any command is meant
    else:
        words = [word.split("|")[0] for word in command.words[1:]]
        try:
            pages.parsed(tuple(words))
        except click.MissingParameter:
            assert command.inline, f"{shown(command)} lacks an argument"


RUNS = [c for c in COMMANDS if c.leaf in ("train", "experiment") and "..." not in c.words]


@pytest.mark.parametrize("command", RUNS, ids=shown)
def test_the_settings_of_every_run_are_sound(command: Command) -> None:
    """What `train` refuses before it trains is refused here: files, values, contradictions."""
    given = pages.parsed(command.words[1:])
    if command.leaf == "experiment":
        load_experiment(ROOT / command.words[2])
        return
    if given["resume"] is not None:
        return
    config = given["config"]
    path = None if config is None else ROOT / str(config)
    clients = given["clients"] if given["clients"] is not None else given["local_nodes"]
    stages = given["stages"]
    settings = load_config(
        path,
        tuple(given["set_"] or ()),  # type: ignore[arg-type]
        epsilon=given["epsilon"],
        data=given["data"],
        rounds=given["rounds"],
        clients=clients,
        aggregation=given["aggregation"],
        stages=None if stages is None else str(stages).split(","),
        track=given["track"] or None,
    )
    assert settings.privacy.unit != "none" or "privacy.unit=none" in command.words


def test_an_unknown_option_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ carefl-secure train \\\n    --no-such-thing 3\n```\n")
    (command,) = commands(page)
    assert command.words == ("carefl-secure", "train", "--no-such-thing", "3") and not command.run
    with pytest.raises(Exception, match="no-such-thing"):
        pages.parsed(command.words[1:])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder that the page on one's own images speaks of."""
    folder = tmp_path_factory.mktemp("own") / "images"
    _image_folder(folder)
    return folder


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.leaf in CHEAP and "--labels" not in c.words and len(c.words) > 2], ids=shown
)
def test_every_cheap_command_does_what_it_should(
    command: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    words = fill(command.words[1:], PATH="images")
    if any(Path(word).is_absolute() for word in words):
        return  # a published corpus, which nobody may pass on
    if command.leaf == "threat-model show" and words[-1] == "NAME":
        words[-1] = "active-server"
    if command.leaf in ("budget", "data check") and len(words) <= len(command.leaf.split()):
        return  # named in running text, without its arguments
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands(run=True), ids=name_of)
def test_commands_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    _image_folder(tmp_path / "images")
    last = ""
    for command in commands(page):
        if command.run:
            _run(command.words[1:], tmp_path)
            last = next((w for w in command.words if w.startswith("run.name=")), last)
    text = page.read_text("utf-8")
    named = set(re.findall(r"`(runs/[\w./-]+)`", text))
    table = re.search(r"^\| in the run folder .*?\n\n", text, re.MULTILINE | re.DOTALL)
    if table is not None:
        inside = re.findall(r"^\|([^|]*)\|", table[0], re.MULTILINE)
        files = {name for cell in inside for name in re.findall(r"`([^`]+)`", cell)}
        named |= {f"runs/{last.removeprefix('run.name=')}/{name}" for name in files}
    missing = sorted(name for name in named if not (tmp_path / name).exists())
    assert not missing, f"the commands of {name_of(page)} leave no {missing}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one small run that commands with a placeholder for a run can be given."""
    home = tmp_path_factory.mktemp("finished")
    _image_folder(home / "images")
    _run(("train", "--epsilon", "8", *SMALL, "--set", "run.name=one"), home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for c in commands(ROOT / "README.md") if c.leaf in ("audit", "evaluate", "report")]
    + [c for c in commands(ROOT / "README.md") if c.leaf.startswith(("ledger", "doctor"))],
    ids=shown,
)
def test_every_command_of_the_readme_on_a_finished_run(command: Command, finished: Path) -> None:
    words = [word.replace("runs/<id>", "runs/one") for word in command.words[1:]]
    _run(tuple(words), finished)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands(ROOT / "README.md") if c.leaf == "train"], ids=shown)
def test_every_training_command_of_the_readme_trains(command: Command, finished: Path) -> None:
    words = [w.replace("runs/<id>", "runs/one") for w in fill(command.words[1:], PATH="images")]
    if any(word.partition("=")[2].startswith(HUB) for word in words):
        return  # its checkpoint would have to be downloaded; the settings are checked above
    if "--resume" in words or len(words) == 1:
        return  # a finished run has nothing left; tests/deployment/superlink/test_resume.py does it
    if "--data" in words:  # 120 pictures: a larger delta is theirs
        _run((*words, "--rounds", "2", "--set", "run.name=own"), finished)
        return
    small = [*SMALL]
    if "--stages" in words:
        small = [*SMALL, "--set", "stages.rounds=[1, 1]"]
    _run((*words, *small), finished)


def _run(words: tuple[str, ...], cwd: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("carefl-secure"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


def _image_folder(folder: Path) -> None:
    """Make the folder that the page on one's own images speaks of."""
    folder.mkdir()
    lines = []
    chance = random.Random(7)
    for number in range(120):
        mood = ("happiness", "sadness", "anger")[number % 3]
        picture = Image.new("RGB", (96, 96), (40, 90, 200))
        pen = ImageDraw.Draw(picture)
        for left, top in itertools.product(range(0, 96, 12), repeat=2):  # no two alike
            shade = chance.randrange(256)
            pen.rectangle((left, top, left + 12, top + 12), fill=(shade, shade, 255 - shade))
        pen.ellipse((30, 30, 66, 66), fill=(230, 190, 40 * (number % 3)))
        picture.save(folder / f"{number:04d}.png")
        line = {"file_name": f"{number:04d}.png", "label": mood, "subject": f"s{number // 2}"}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
