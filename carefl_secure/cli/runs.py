"""``carefl-secure runs`` and ``watch``: what has been run, and one run as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from carefl_secure.cli.console import Json, Run, require_run, result_console, result_table, say, write_json
from carefl_secure.cli.reporter import figure
from carefl_secure.errors import CareflError, RunError

runs = typer.Typer(name="runs", no_args_is_help=True, help="List the runs of a folder.")


@runs.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds the run folders.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List every run with its rounds, its epsilon by the ledgers, and its last mAP.

    A run that cannot be read is listed with the reason.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the one that holds the runs (run.dir)")
    found = [_row(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    if json:
        write_json(found)
        return
    table = result_table("run", "state", "rounds", "epsilon", "mAP", left=("run", "state"))
    for row in found:
        rounds = f"{row['rounds_finished']} of {row['rounds_planned'] or '?'}" if "state" in row else ""
        cells = (figure("epsilon", row.get("epsilon")) or "-", figure("mAP", row.get("mAP")) or "-")
        table.add_row(escape(row["run"]), escape(row.get("state") or "unreadable"), rounds, *cells)
    result_console().print(table)
    for row in found:
        if "error" in row:
            say(f"{row['run']}: {row['error']}")


def _row(path: Path) -> dict[str, Any]:
    from carefl_secure.deployment.metrics import run_figures
    from carefl_secure.run_folder import RunFolder

    try:
        rows = RunFolder.open(path).read_metrics()
        return {**run_figures(path), "mAP": rows[-1].get("mAP") if rows else None}
    except CareflError as error:
        return {"run": path.name, "error": str(error)}


def watch(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
) -> None:
    """Show a run on a page that follows it, at http://127.0.0.1:PORT, until Ctrl-C.

    The page is served to this machine alone. It reads the run folder, while the run is on and afterwards, and changes
    nothing.
    """
    require_run(run)
    from carefl_secure.deployment.metrics import run_figures
    from carefl_secure.report.watch import watching

    with watching(run, port, lambda: run_figures(run)) as server:
        say(f"http://127.0.0.1:{server.server_port}/ shows {run}; Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)
