"""The part of ``carefl-secure evaluate`` that is about C-EXPR-DB's seven classes."""

from __future__ import annotations

import json as plain
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from carefl_secure.data.corpora.cexpr_fusion import Rule
    from carefl_secure.evaluation.assess import Settings
    from carefl_secure.evaluation.summary import Evaluation
    from carefl_secure.runs.evaluation.zero_shot import ZeroShot

__all__ = ["zero_shot"]


def zero_shot(
    run: Path,
    data: Path | None,
    rule: Rule,
    frames: tuple[int, int],
    settings: Settings,
    *,
    show: Callable[[Evaluation, Path], None],
    quiet: bool,
    json: bool,
) -> None:
    """Score a run on the seven classes and show the figures, and where the predictions are."""
    from carefl_secure.runs.evaluation.zero_shot import evaluate_zero_shot

    fold, every = frames

    def scored(reporter: Reporter) -> ZeroShot:
        return evaluate_zero_shot(
            run, reporter, data=data, rule=rule, fold=fold, every=every, settings=settings
        )

    if quiet:
        found = scored(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            found = scored(reporter)
    if json:
        if found.evaluation is not None:
            typer.echo(found.evaluation.as_json(), nl=False)
        elif found.predictions is not None:
            told = {"run": found.run, "videos": found.unlabelled, "file": found.predictions.name}
            typer.echo(plain.dumps({"format": "carefl.predictions/1", **told}, sort_keys=True))
        return
    if found.evaluation is not None and found.file is not None:
        show(found.evaluation, found.file)
    if found.predictions is not None:
        typer.echo(
            f"predictions, {found.unlabelled:,} of them for videos without a label: "
            f"{found.predictions}"
        )
        typer.echo("note: the columns are this package's own; the challenge published no format")
