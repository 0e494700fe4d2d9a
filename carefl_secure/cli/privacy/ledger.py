"""``carefl-secure ledger``: check, read and mend the books of what was spent."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from carefl_secure.errors import LedgerError

if TYPE_CHECKING:
    from carefl_secure.privacy.ledger.statement import Statement

__all__ = ["ledger"]

ledger = typer.Typer(
    name="ledger",
    no_args_is_help=True,
    help="Check, read and mend the ledgers of what was spent.",
)

_WIDTH = 140  # a log has no width: there the tables take what they need

Place = Annotated[
    Path, typer.Argument(metavar="PATH", help="A ledger file, or a run folder for all in it.")
]


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@ledger.command("verify")
def verify(
    path: Place,
    head: Annotated[
        str | None,
        typer.Option(help="A hash seen earlier that must still stand in the chain (one ledger)."),
    ] = None,
) -> None:
    """Check every hash chain, and say which entry of which ledger is broken."""
    from carefl_secure.privacy.ledger.ledger import Ledger
    from carefl_secure.privacy.ledger.statement import find_ledgers

    files = find_ledgers(path)
    if head is not None and len(files) > 1:
        raise LedgerError("--head belongs to one ledger; give the path of that file")
    broken: list[str] = []
    for file in files:
        book = Ledger(file)
        try:
            book.verify(head)
            entries = book.entries()
        except LedgerError as error:
            broken.append(str(error))
            _say(f"BROKEN  {file}")
            continue
        last = entries[-1].hash if entries else "none"
        _say(f"ok      {file}  {len(entries)} entries, head {last}")
    if broken:
        raise LedgerError("\n".join(broken))


@ledger.command("show")
def show(
    path: Place,
    delta: Annotated[
        float | None,
        typer.Option(help="For pricing; by default that of the run's plan, or 1e-5 without one."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Show what was spent, and what it comes to."""
    from carefl_secure.privacy.ledger.statement import delta_for, find_ledgers, statement

    files = find_ledgers(path)
    chosen = delta_for(path) if delta is None else delta
    found = [statement(file, chosen) for file in files]
    if json:
        typer.echo(json_text.dumps([one.to_json() for one in found], indent=2, allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for one in found:
        _show(one, console)


def _show(one: Statement, console: Console) -> None:
    about = ", ".join(f"{name} {value}" for name, value in sorted(one.identity.items()))
    _say(f"{one.path}" + (f" ({about})" if about else ""))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("entries", "first", "run", "spends"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    table.add_column("released")
    table.add_column("epsilon alone", justify="right")
    for line in one.lines:
        table.add_row(
            f"{line.first}-{line.last}" if line.last > line.first else str(line.first),
            line.time[:19].replace("T", " "),
            line.run,
            str(line.count),
            line.words,
            f"{line.epsilon:.4f}",
        )
    if one.lines:
        console.print(table)
    for text in one.remarks():
        _say(f"  {text}")


@ledger.command("recover")
def recover(path: Place) -> None:
    """Cut off a last line that a crash left unfinished; whole entries are never touched."""
    from carefl_secure.privacy.ledger.ledger import Ledger
    from carefl_secure.privacy.ledger.statement import find_ledgers

    for file in find_ledgers(path):
        cut = Ledger(file).recover()
        _say(f"{file}: {f'{cut} bytes of an unfinished line cut off' if cut else 'nothing to cut'}")
