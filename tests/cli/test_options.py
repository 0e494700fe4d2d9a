"""Options in a dataclass: typer sees them as if they were the command's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.cli.console import unfold

Many = Annotated[int, typer.Option(min=1, metavar="N", help="How many [markup].")]
Word = Annotated[list[str] | None, typer.Option("--set", help="Repeatable.")]
Kind = Annotated[Literal["a", "b"], typer.Option(help="One of two.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    many: Many
    set_: Word = None
    kind: Kind = "a"


@unfold
def packed(name: str, options: Options, loud: bool = False) -> None:
    """Say it."""
    print(name, options.many, options.set_, options.kind, loud)


def spread(name: str, many: Many, set_: Word = None, kind: Kind = "a", loud: bool = False) -> None:
    """Say it."""
    print(name, many, set_, kind, loud)


def run(command: Callable[..., None], *words: str) -> tuple[int, str]:
    one = typer.Typer()
    one.command("say")(command)
    found = CliRunner().invoke(one, list(words))
    return found.exit_code, found.output


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["x", "--many", "3"],
        ["x", "--many", "3", "--set", "a", "--set", "b", "--kind", "b", "--loud"],
        ["x"],
        ["x", "--many", "0"],
        ["x", "--many", "1", "--kind", "c"],
    ],
    ids=" ".join,
)
def test_it_is_the_same_command(words: list[str]) -> None:
    assert run(packed, *words) == run(spread, *words)


def test_a_command_without_a_dataclass_is_refused() -> None:
    with pytest.raises(TypeError, match="no dataclass"):
        unfold(spread)


def test_no_command_takes_more_than_eight_parameters() -> None:
    group = get_command(app)
    found = [group]
    while found:
        command = found.pop()
        found += list(getattr(command, "commands", {}).values())
        if command.callback is not None:
            # typer's wrapper, ours where there is one, and the function as it is written
            written = inspect.unwrap(command.callback)
            assert len(inspect.signature(written).parameters) <= 8, command.name


READING = {
    "audit", "budget", "cache list", "data check", "doctor", "evaluate", "ledger show", "ledger verify", "plan",
    "predict", "report", "runs list", "settings list", "settings show", "status", "threat-model check",
    "threat-model list", "threat-model show",
}  # fmt: skip


def test_every_command_that_only_reads_or_scores_answers_in_json() -> None:
    found, pending = set(), [("", get_command(app))]
    for path, command in pending:
        pending += [(f"{path} {name}".strip(), one) for name, one in getattr(command, "commands", {}).items()]
        if any("--json" in one.opts for one in command.params):
            found.add(path)
    assert found >= READING
