"""``carefl-secure data`` and ``cache``: a corpus before anything is trained on it, and stored vision features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from carefl_secure.cli.console import Json, Quiet, group, result_console, result_table, say, write_json
from carefl_secure.cli.reporter import running
from carefl_secure.errors import ConfigError, DataError

if TYPE_CHECKING:
    from carefl_secure.data.checks.check import Report

data = group("data", "Look at a corpus.")


@data.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder that holds the corpus.")],
    labels: Annotated[str, typer.Option(help="Label space, such as basic; auto takes all there are.")] = "auto",
    view: Annotated[str, typer.Option(help="For RAF-DB: aligned or original.")] = "auto",
    format: Annotated[str, typer.Option(help="Name of the corpus format; auto looks for the marks of each.")] = "auto",
    clients: Annotated[int | None, typer.Option(min=2, help="Share it out to so many clients; compare them.")] = None,
    column: Annotated[str | None, typer.Option(help="Attribute, or subject, to share it out by.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Recognise a corpus, hold it against the published counts, and look for duplicates.

    Ends with exit code 10 where something is missing or wrong.
    """
    # scipy waits until it is known what is asked.
    from carefl_secure.data.checks.check import check_corpus

    with running(quiet) as reporter:
        report = check_corpus(
            path, task=labels, view=view, format=format, clients=clients, column=column, reporter=reporter
        )
    if json:
        write_json(report.as_json())
    else:
        _show(report)
    if not report.sound:
        raise typer.Exit(DataError.exit_code)


def _table(title: str, first: str, *columns: str) -> Table:
    table = result_table(first, *columns, left=(first,))
    table.title, table.title_justify = title, "left"
    return table


def _show(report: Report) -> None:
    console = result_console()
    say(f"{report.kind}: {report.root}")
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
    for title, lines in (("missing", report.missing), ("wrong", report.faults), ("note", report.notes)):
        for line in lines:
            say(f"{title}: {line}")
    if report.sound:
        say("nothing is missing or wrong")


cache = group("cache", "List and erase stored vision features.")

Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="model.feature_cache; by default the user's cache.")]


def _root(folder: Path | None) -> Path:
    from carefl_secure.model.vision.shards import cache_folder

    root = cache_folder(folder or "auto")
    assert root is not None
    return root


@cache.command("list")
def list_(folder: Folder = None, json: Json = False) -> None:
    """List the encoders whose features are stored, with images and size.

    Features are as private as the images that they were made of.
    """
    from carefl_secure.model.vision.shards import list_encoders

    root = _root(folder)
    found = list_encoders(root)
    if json:
        write_json({"folder": str(root), "encoders": [dataclasses.asdict(one) for one in found]})
        return
    if not found:
        say(f"no vision features are stored in {root}")
        return
    table = result_table("name", "base model", "type", "images", "MB", left=("name", "base model", "type"))
    for one in found:
        table.add_row(one.name[:12], one.base, one.dtype, f"{one.images:,}", f"{one.size / 1e6:,.1f}")
    result_console().print(table)
    say(f"in {root}; erase with 'carefl-secure cache delete NAME' or '--all'")


@cache.command("delete")
def delete(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names, or how they begin.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Erase the features of all encoders.")] = False,
    folder: Folder = None,
) -> None:
    """Erase stored features; later runs encode the images again.

    Files are unlinked, not overwritten: what the medium keeps is for disk encryption to protect.
    """
    from carefl_secure.model.vision.shards import delete_encoders, list_encoders

    root = _root(folder)
    if everything == bool(names):
        raise ConfigError("name what to erase, or give --all; see 'carefl-secure cache list'")
    chosen = [one.name for one in list_encoders(root)] if everything else names or []
    freed = delete_encoders(root, chosen)
    say(f"erased the features of {len(chosen)} encoders in {root}: {freed / 1e6:,.1f} MB")
