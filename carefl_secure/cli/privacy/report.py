"""``carefl-secure report``: what a run spent and protects, for people and for machines."""

from __future__ import annotations

import typer

from carefl_secure.cli.console import Json, Run, require_run, say


def report(run: Run, json: Json = False) -> None:
    """Write the privacy report of a run into its folder; a void report exits with an error.

    Everything is read from the run folder, and epsilon is recomputed from its ledgers.
    """
    require_run(run)
    from carefl_secure.report import refuse_void, write_report

    found, files = write_report(run)
    if json:
        typer.echo(found.as_json())
    else:
        for text in (found.summary(), *(f"  {file}" for file in files)):
            say(text)
    refuse_void(found)
