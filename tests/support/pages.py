"""What the documentation pages name: commands, paths, modules, options and settings."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer.main

from carefl_secure.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("examples/*.md")])
PACKAGE = ROOT / "carefl_secure"

_FENCE = re.compile(r"(<!-- run -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_TOP = ("benchmarks", "carefl_secure", "configs", "docs", "tests", "threat_models")
_ROOMS = tuple(sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()))
_SOURCE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(_TOP)})/[\w./*-]*|[\w/]+\.py)(?![\w(])")
_DOTTED = re.compile(r"\bcarefl_secure(?:\.[A-Za-z_]\w*)+")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    words: tuple[str, ...]
    run: bool
    inline: bool = False
    """Whether running text names it, perhaps without its arguments."""

    @property
    def leaf(self) -> str:
        """The name of the command without its arguments, such as ``ledger verify``."""
        return " ".join(path_of(self.words[1:])) if self.words[0] == "carefl-secure" else "make"


@functools.cache
def _program() -> click.Command:
    return typer.main.get_command(app)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands in the fenced and indented blocks of a page, and those in its text."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        yield from _lines(found[3], bool(found[1]))
    rest = _FENCE.sub("", text)
    for line in rest.splitlines():
        if line.startswith(("    carefl-secure ", "    make ")):
            yield from _lines(line, False)
    for span in _SPAN.findall(rest):
        if span.startswith(("carefl-secure ", "make ")):
            yield Command(tuple(shlex.split(span)), False, inline=True)


def _lines(block: str, run: bool) -> Iterator[Command]:
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        line = line.strip().removeprefix("$ ")
        if line.startswith(("carefl-secure ", "make ")):
            yield Command(tuple(shlex.split(line, comments=True)), run)


def path_of(words: tuple[str, ...]) -> list[str]:
    """Return the leading words that name a command or group."""
    node: click.Command = _program()
    found: list[str] = []
    for word in words:
        inner = node.get_command(click.Context(node), word) if isinstance(node, click.Group) else None
        if inner is None:
            break
        node = inner
        found.append(word)
    return found


def find_command(words: tuple[str, ...]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, and the words after it.

    Raises
    ------
    LookupError
        If there is no such command.
    """
    node: click.Command = _program()
    rest = list(words)
    while isinstance(node, click.Group) and rest and not rest[0].startswith("-"):
        inner = node.get_command(click.Context(node), rest[0].split("|")[0])
        if inner is None:
            raise LookupError(f"there is no command {rest[0]!r}")
        node, rest = inner, rest[1:]
    return node, rest


def parsed(words: tuple[str, ...]) -> dict[str, object]:
    """Parse a command as the program would, without running it; return its parameters."""
    node, rest = find_command(words)
    with node.make_context(node.name, rest, resilient_parsing=False) as context:
        return dict(context.params)


def source_paths(page: Path) -> set[str]:
    """Return every path of the repository that a page names in code spans, blocks and links."""
    return {token.rstrip(".") for code in _code(page) for token in _SOURCE.findall(code)}


def exists(token: str) -> bool:
    """Tell whether a named path is there: from the root, from the package, or by its file name."""
    if token.startswith(tuple(f"{top}/" for top in _TOP)):
        return any(ROOT.glob(token.rstrip("/")))
    if "/" in token:
        return (PACKAGE / token).is_file() or any(PACKAGE.rglob(token))
    return any(path for top in _TOP for path in (ROOT / top).rglob(token))


def module_names(page: Path) -> set[str]:
    """Return every dotted name below the package."""
    return set(_DOTTED.findall(page.read_text("utf-8")))


def option_names(page: Path) -> set[str]:
    """Return every long option that a page names outside commands of other programs."""
    spans = [code for code in _code(page) if not code.startswith(("mlflow ", "pip ", "tensorboard ", "wandb "))]
    return {option for code in spans for option in _OPTION.findall(code)}


def setting_names(page: Path, sections: set[str]) -> set[str]:
    """Return every ``section.key`` in code, with and without a value."""
    pattern = re.compile(rf"(?<![\w./-])((?:{'|'.join(sorted(sections))})\.[a-z_]+)(?![\w./(-])")
    return {found for code in _code(page) for found in pattern.findall(code)}


def links(page: Path) -> set[str]:
    """Return the targets of links to other files."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return {link for link in found if not link.startswith(("http", "#", "mailto:"))}


def _code(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    blocks = [found[3] for found in _FENCE.finditer(text) if found[2] != "mermaid"]
    rest = _FENCE.sub("", text)
    indented = [line for line in rest.splitlines() if line.startswith("    ")]
    return [*blocks, *indented, *_SPAN.findall(rest)]
