"""The part of ``carefl-secure evaluate`` that lets the model answer in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from carefl_secure.runs.evaluation.generated import Generated

__all__ = ["written"]


def written(
    run: Path, split: str, constrained: bool, replicates: int, *, quiet: bool, json: bool
) -> None:
    """Score a run by generated text and show the figures."""
    from carefl_secure.runs.evaluation.generated import evaluate_generated

    def scored(reporter: Reporter) -> Generated:
        return evaluate_generated(
            run,
            reporter,
            split=cast(Literal["test", "public"], split),
            constrained=constrained,
            replicates=replicates,
        )

    if quiet:
        found = scored(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            found = scored(reporter)
    if json:
        typer.echo(found.as_json(), nl=False)
        return
    console = Console()
    how = "labels only" if found.constrained else "free"
    console.print(
        f"{found.run}: {found.records:,} records, {found.split} split ({found.space}), answers "
        f"in words, {how}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in ("untuned", "tuned"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, value in found.figures.items():
        low, high = found.intervals[name]["low"], found.intervals[name]["high"]
        spread = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        table.add_row(
            name.replace("_", " "), f"{found.untuned[name]:.3f}", escape(f"{value:.3f}{spread}")
        )
    table.add_row("unparsable", str(found.untuned_unparsable), str(found.unparsable))
    console.print(table)
    console.print(f"note: {found.remark}", markup=False, highlight=False, soft_wrap=True)
