"""``carefl-secure pretrain``: rebuild the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli.console import Quiet
from carefl_secure.cli.reporter import running


def pretrain(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, weights and order.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; without it, the full number.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train the small base model on synthetic scenes and write it to a folder."""
    from carefl_secure.model.pretrain import pretrain as run

    with running(quiet) as reporter:
        written = run(output, seed=seed, steps=steps, reporter=reporter)
    typer.echo(f"model: {written}")
