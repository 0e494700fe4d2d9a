"""``carefl-secure pretrain``: make the embedded model anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.progress import SilentReporter

__all__ = ["pretrain"]


def pretrain(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, weights and order.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; without it, the full number.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train the small base model on public drawn scenes and write it to a folder."""
    from carefl_secure.model.pretrain import pretrain as run

    if quiet:
        written = run(output, seed=seed, steps=steps, reporter=SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            written = run(output, seed=seed, steps=steps, reporter=reporter)
    typer.echo(f"model: {written}")
