"""``carefl-secure plan``: what a run would cost and how much of it would be noise, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli.console import Json, Quiet, Words, require_corpus, say, write_json
from carefl_secure.cli.reporter import running
from carefl_secure.config import load_config


def plan(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with settings.")] = None,
    set_: Words = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Corpus folder; else synthetic scenes.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget of all rounds together.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Forecast a run: its noise, and how much of each update it would be.

    Reads the corpus and the base model, computes gradients of public records, and spends nothing.
    """
    settings = load_config(config, set_ or (), data=data, epsilon=epsilon)
    require_corpus(settings.data.source)
    from carefl_secure.runs.prepare import plan_only

    with running(quiet) as reporter:
        found = plan_only(settings, reporter)
    if json:
        write_json(found)
    else:
        say(found["budget"])
        say(found["forecast"]["sentence"])
