"""``carefl-secure ledger``: verify, read and recover the ledgers of what was spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from carefl_secure.cli.console import Json, group, result_console, result_table, say, write_json
from carefl_secure.errors import LedgerError
from carefl_secure.rounding import round_up

if TYPE_CHECKING:
    from carefl_secure.privacy.ledger.statement import Statement

ledger = group("ledger", "Verify, read and recover ledgers of what was spent.")

Place = Annotated[Path, typer.Argument(metavar="PATH", help="A ledger file, or a run folder for all in it.")]


@ledger.command("verify")
def verify(
    path: Place,
    head: Annotated[str | None, typer.Option(help="A hash that the chain must still hold (one ledger).")] = None,
    json: Json = False,
) -> None:
    """Verify every hash chain, and name the broken entry of each broken ledger."""
    from carefl_secure.privacy.ledger.ledger import Ledger
    from carefl_secure.privacy.ledger.statement import find_ledgers

    files = find_ledgers(path)
    if head is not None and len(files) > 1:
        raise LedgerError("--head belongs to one ledger; give the path of that file")
    found: list[dict[str, object]] = []
    broken: list[str] = []
    for file in files:
        book = Ledger(file)
        row: dict[str, object] = {"path": str(file), "whole": True}
        try:
            book.verify(head)
            entries = book.entries()
            row |= {"entries": len(entries), "head": entries[-1].hash if entries else None}
        except LedgerError as error:
            broken.append(str(error))
            row |= {"whole": False, "error": str(error)}
        found.append(row)
    if json:
        write_json(found)
    else:
        for row in found:
            fine = f"  {row.get('entries')} entries, head {row.get('head') or 'none'}"
            say(f"ok      {row['path']}{fine}" if row["whole"] else f"BROKEN  {row['path']}")
    if broken:
        raise LedgerError("\n".join(broken))


@ledger.command("show")
def show(
    path: Place,
    delta: Annotated[float | None, typer.Option(help="Delta to price at; default: the plan's, else 1e-5.")] = None,
    json: Json = False,
) -> None:
    """Show what was spent, and its total epsilon."""
    from carefl_secure.privacy.ledger.statement import delta_for, find_ledgers, statement

    files = find_ledgers(path)
    chosen = delta_for(path) if delta is None else delta
    found = [statement(file, chosen) for file in files]
    if json:
        write_json([one.to_json() for one in found])
        return
    console = result_console()
    for one in found:
        _show(one, console)
    if len(found) > 1:
        largest = max(one.epsilon for one in found)
        say(f"the largest epsilon of {len(found)} ledgers counts: {round_up(largest)}")


def _show(one: Statement, console: Console) -> None:
    from carefl_secure.privacy.ledger.statement import event_words

    about = ", ".join(f"{name} {value}" for name, value in sorted(one.identity.items()))
    say(f"{one.path}" + (f" ({about})" if about else ""))
    names = ("entries", "first", "run", "spends", "released", "epsilon alone")
    table = result_table(*names, left=("run", "released"))
    for name in ("released", "epsilon alone"):
        table.columns[names.index(name)].no_wrap = False
    for line in one.lines:
        table.add_row(
            f"{line.first}-{line.last}" if line.last > line.first else str(line.first),
            line.time[:19].replace("T", " "),
            line.run,
            str(line.event.count),
            event_words(line.event),
            round_up(line.epsilon),
        )
    if one.lines:
        console.print(table)
    for text in one.remarks():
        say(f"  {text}")


@ledger.command("recover")
def recover(path: Place) -> None:
    """Remove a last line that a crash left unfinished; whole entries are never touched."""
    from carefl_secure.privacy.ledger.ledger import Ledger
    from carefl_secure.privacy.ledger.statement import find_ledgers

    for file in find_ledgers(path):
        cut = Ledger(file).recover()
        say(f"{file}: {f'{cut} bytes of an unfinished line cut off' if cut else 'nothing to cut'}")
