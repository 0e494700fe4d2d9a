"""``carefl-secure report``: what a run spent and protects, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    json: Annotated[bool, typer.Option("--json", help="Write the report as JSON.")] = False,
) -> None:
    """Write the privacy report of a run into its folder; a void report is written and refused.

    Everything is read from the run folder, and epsilon is computed anew from its ledgers.
    """
    from carefl_secure.report import refuse_void, write_report

    found, files = write_report(run)
    if json:
        typer.echo(found.as_json())
    else:
        console = Console()
        for text in (found.summary(), *(f"  {file}" for file in files)):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    refuse_void(found)
