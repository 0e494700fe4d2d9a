"""What all commands share: their common options and output to a terminal or a log."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from carefl_secure.errors import DataError, RunError

_WIDTH = 140  # a log has no width, so tables take what they need

Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Words = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Run even if the forecast is nearly all noise.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


def group(name: str, help: str) -> typer.Typer:
    """Return an empty group of commands, which stays one where it gets a single command."""
    return typer.Typer(name=name, no_args_is_help=True, help=help, callback=lambda: None)


def write_line(console: Console, text: str, style: str = "") -> None:
    """Write one line as it is; a terminal wraps it at words, and a log never does."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def say(text: str) -> None:
    """Write one line of the result."""
    write_line(Console(), text)


def write_json(value: object) -> None:
    """Write a result as strict JSON."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def result_console() -> Console:
    """Return the console of a result that holds tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def result_table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table; columns are aligned right but for those of ``left``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def confirmation(yes: bool) -> Callable[[str], bool]:
    """Return what confirms a run that is forecast to be nearly all noise: ``--yes``, or a person at a terminal."""
    return lambda said: yes or (sys.stdin.isatty() and typer.confirm(f"{said}. Run all the same?", err=True))


def require_run(path: Path) -> None:
    """Refuse a path that is no run folder, before anything heavy is imported."""
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is not a run folder: it holds no config.yaml; give runs/NAME")


def require_corpus(source: str) -> None:
    """Refuse a corpus folder that does not exist, before anything heavy is imported."""
    if source != "synthetic" and not Path(source).is_dir():
        raise DataError(f"{source} is not a folder; give the folder that holds the corpus")


def unfold(command: Callable[..., None]) -> Callable[..., None]:
    """Offer the fields of a command's dataclass parameter to typer as options; TypeError where it has no such one."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    packed: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(_keyword(name, kind, parameter.default))
            continue
        packed[name] = kind  # type: ignore[assignment]
        inside = get_type_hints(kind, include_extras=True)
        parameters += [
            _keyword(
                field.name,
                inside[field.name],
                inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            )
            for field in dataclasses.fields(kind)
        ]
    if not packed:
        raise TypeError(f"{command.__name__} takes no dataclass of options")

    @functools.wraps(command)
    def unfolded(**given: Any) -> None:
        for name, kind in packed.items():
            fields = dataclasses.fields(kind)
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields})
        command(**given)

    vars(unfolded)["__signature__"] = inspect.Signature(parameters)
    unfolded.__annotations__ = {one.name: one.annotation for one in parameters}
    return unfolded


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
