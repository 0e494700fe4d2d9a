"""``carefl-secure data``: look at a corpus before anything is trained on it."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.errors import DataError
from carefl_secure.progress import SilentReporter

if TYPE_CHECKING:
    from carefl_secure.data.checks.report import Report

__all__ = ["data"]

_WIDTH = 140

data = typer.Typer(name="data", no_args_is_help=True, help="Look at a corpus.")


@data.callback()
def _group() -> None:
    """Look at a corpus before anything is trained on it."""


@data.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder that holds the corpus.")],
    labels: Annotated[
        str, typer.Option(help="Label space, such as basic; auto takes all there are.")
    ] = "auto",
    view: Annotated[str, typer.Option(help="For RAF-DB: aligned or original.")] = "auto",
    format: Annotated[
        str, typer.Option(help="Name of the corpus format; auto looks for the marks of each.")
    ] = "auto",
    clients: Annotated[
        int | None, typer.Option(min=2, help="Share it out to so many clients; compare these too.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Attribute, or subject, to share it out by.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write the report as JSON to standard output.")
    ] = False,
) -> None:
    """Recognise a corpus, hold it against the published counts, and look for duplicates.

    Ends with exit code 10 where something is missing or wrong.
    """
    # scipy waits until it is known what is asked.
    from carefl_secure.data.checks.check import check_corpus

    def run(reporter: RichReporter | SilentReporter) -> Report:
        return check_corpus(
            path,
            task=labels,
            view=view,
            format=format,
            clients=clients,
            column=column,
            reporter=reporter,
        )

    if quiet:
        report = run(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            report = run(reporter)
    if json:
        typer.echo(json_.dumps(report.as_json(), indent=2, allow_nan=False))
    else:
        _show(report, Console())
    if not report.sound:
        raise typer.Exit(DataError.exit_code)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _show(report: Report, console: Console) -> None:
    """Write what was found; a log has no width, there the tables take what they need."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    console.print(f"{report.kind}: {report.root}", markup=False, highlight=False, soft_wrap=True)
    table = _table("splits", "split", "records", "images", "labelled", "skipped", "repeated")
    for one in report.splits:
        numbers = (one.records, one.images, one.labelled, sum(one.skipped.values()), one.repeated)
        table.add_row(one.name, *(f"{number:,}" for number in numbers))
    console.print(table)
    if report.counts:
        table = _table("published counts", "what", "found", "published")
        for count in report.counts:
            table.add_row(count.what, f"{count.found:,}", f"{count.published:,}")
        console.print(table)
    if report.shared:
        table = _table("in both", "parts", "equal", "nearly equal", "subjects")
        for pair in report.shared:
            both = (pair.exact, pair.near, pair.subjects)
            table.add_row(f"{pair.first}, {pair.second}", *(f"{number:,}" for number in both))
        console.print(table)
    for title, lines in (
        ("missing", report.missing),
        ("wrong", report.faults),
        ("note", report.notes),
    ):
        for line in lines:
            console.print(f"{title}: {line}", markup=False, highlight=False, soft_wrap=True)
    if report.sound:
        console.print("nothing is missing or wrong", highlight=False)
