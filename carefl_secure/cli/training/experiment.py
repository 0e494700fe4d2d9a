"""``carefl-secure experiment``: a table over variants and seeds, from one YAML file."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from carefl_secure.cli.console import Json, Quiet, Words, require_corpus, result_console, result_table, say
from carefl_secure.cli.reporter import running
from carefl_secure.config.experiment import cells_of, load_experiment
from carefl_secure.config.load import parse_words
from carefl_secure.errors import RunError


def experiment(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file of the experiment.")],
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of experiments.")] = Path("runs/experiments"),
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at the same time, one process each.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume-by-default/--no-resume", help="Keep finished cells and resume interrupted ones.")
    ] = True,
    set_: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the cells; run nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run every variant under every seed and compare them in DIR/NAME.

    Writes results.json, table.md and table.html there. A failing cell is named in all of them and makes the exit code
    40; the other cells still run.
    """
    asked = load_experiment(file)
    folder = run_dir / asked.name
    cells = cells_of(asked, folder, parse_words(set_ or ()))
    if dry_run:
        for cell in cells:
            typer.echo(f"{cell.name}  {cell.variant.kind}")
        return
    if not resume and folder.exists():
        raise RunError(f"{folder} exists; remove it, or leave out --no-resume to go on with it")
    for source in sorted({cell.config.data.source for cell in cells}):
        require_corpus(source)
    # Heavy imports wait until the settings are checked.
    from carefl_secure.experiment.run import run_cells
    from carefl_secure.experiment.table import results
    from carefl_secure.report.render.page import experiment_html, experiment_markdown
    from carefl_secure.run_folder import make_folder, write_atomically

    with running(quiet) as reporter:
        finished = run_cells(cells, jobs, reporter)
    found = results(asked, finished, folder)
    make_folder(folder)
    text = json_.dumps(found, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "results.json", text.encode())
    write_atomically(folder / "table.md", experiment_markdown(found).encode())
    write_atomically(folder / "table.html", experiment_html(found).encode())
    if json:
        typer.echo(text, nl=False)
    else:
        _show(found, folder)
    if found["failures"]:
        named = ", ".join(one["cell"] for one in found["failures"])
        raise RunError(
            f"{len(found['failures'])} of {len(cells)} cells failed: {named}; the reasons are "
            f"in {folder / 'table.md'}; the same command runs them again"
        )


def _show(found: dict[str, Any], folder: Path) -> None:
    from carefl_secure.report.render.page import spent, spread

    console = result_console()
    names = list(dict.fromkeys(n for row in found["rows"] for n in row["figures"]))
    table = result_table("variant", "kind", "epsilon", *names, left=("variant", "kind"))
    for row in found["rows"]:
        figures = (spread(row["figures"].get(name), name) for name in names)
        table.add_row(row["variant"], row["kind"], spent(row), *map(escape, figures))
    console.print(table)
    titles = ("variant", "against", "mAP over seeds", "mAP over records", "p (Holm)", "clear")
    table = result_table(*titles, left=("variant", "against"))
    for row in found["comparisons"]:
        p = row["p_holm"]
        cells = (
            spread(row["over_seeds"].get("mAP")),
            spread(row["over_records"].get("mAP")),
            "-" if p is None else f"{p:.3f}",
            "yes" if row["clear"] else "no",
        )
        table.add_row(row["variant"], row["against"], *map(escape, cells))
    console.print(table)
    for name in ("table.md", "table.html", "results.json"):
        say(f"  {folder / name}")
