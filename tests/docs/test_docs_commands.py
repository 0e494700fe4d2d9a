"""Every command that a page shows: that it parses, and that it does what the page says."""

from __future__ import annotations

import itertools
import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer.main
from PIL import Image, ImageDraw

from carefl_secure.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"(<!-- run -->\n)?```(\w*)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    words: tuple[str, ...]
    run: bool


def commands(page: Path) -> Iterator[Command]:
    """Find the commands in the fenced and indented blocks of a page."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        yield from _lines(found[3], bool(found[1]))
    for line in _FENCE.sub("", text).splitlines():
        if line.startswith(("    carefl-secure ", "    make ")):
            yield from _lines(line, False)


def _lines(block: str, run: bool) -> Iterator[Command]:
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        line = line.strip().removeprefix("$ ")
        if line.startswith(("carefl-secure ", "make ")):
            yield Command(tuple(shlex.split(line, comments=True)), run)


def pages(run: bool) -> list[Path]:
    return [page for page in PAGES if any(c.run or not run for c in commands(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_there_are_commands_to_check() -> None:
    assert {"README.md", "docs/index.md"} <= {name(page) for page in pages(run=False)}
    assert len(pages(run=True)) >= 5


@pytest.mark.parametrize("page", pages(run=False), ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for command in commands(page):
        first, *rest = command.words
        if first == "make":
            assert rest and rest[0] in targets, command.words
            continue
        node: click.Command = typer.main.get_command(app)
        context = click.Context(node, info_name=first)
        while isinstance(node, click.Group) and rest:
            inner = node.get_command(context, rest[0].split("|")[0])
            assert inner is not None, f"{name(page)}: no command {rest[0]!r} in {command.words}"
            node, rest = inner, rest[1:]
        known = {option for each in node.params for option in (*each.opts, *each.secondary_opts)}
        for word in rest:
            option = word.split("=")[0]
            if option.startswith("-") and option not in ("--help", "--version", "-V"):
                assert option in known, f"{name(page)}: {command.words} has no option {option}"


def test_an_unknown_option_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ carefl-secure train \\\n    --no-such-thing 3\n```\n")
    (command,) = commands(page)
    assert command.words == ("carefl-secure", "train", "--no-such-thing", "3") and not command.run


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(run=True), ids=name)
def test_commands_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    _image_folder(tmp_path / "images")
    program = Path(sys.executable).with_name("carefl-secure")
    for command in commands(page):
        if command.run:
            done = subprocess.run(
                [program, *command.words[1:]],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, f"{command.words}\n{done.stdout}\n{done.stderr}"


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
