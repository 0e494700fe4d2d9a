"""``carefl-secure predict`` and ``export``: use the model of a finished run."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from carefl_secure.cli.console import Quiet, say
from carefl_secure.cli.reporter import running
from carefl_secure.errors import ConfigError, DataError, RunError
from carefl_secure.progress import tracked

_NAMED = 5  # unreadable images that the last line names
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, of its adapter, or of an export.")]


def predict(
    run: Folder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: scores and thresholds.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="One row per image and label.")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images in memory at a time.")] = 16,
    quiet: Quiet = False,
) -> None:
    """Label images with the model of a run. Nothing else of the run, and no corpus, is needed.

    Images that cannot be read are named, and end the command with exit code 10 after the others.
    """
    _require(run)
    if csv is not None and csv.suffix != ".csv":
        raise ConfigError(f"--csv writes CSV, but {csv} does not end in .csv")
    # torch waits until the options are checked.
    from carefl_secure.runs.saved_model.predict import ScoreFile, TrainedModel, image_files, score_file

    unread: list[str] = []
    with running(quiet) as reporter, ExitStack() as stack:
        files = image_files(images, reporter.note)
        model = TrainedModel(run, batch)
        written = [stack.enter_context(score_file(csv))] if csv is not None else []
        written += [ScoreFile(sys.stdout, table=False)] if json else []
        task = f"labelling {len(files)} images"
        for path, found in tracked(model.stream(files), reporter, task, len(files)):
            if isinstance(found, DataError):
                reporter.note(f"not read: {found}")
                unread.append(str(path))
            else:
                for file in written:
                    file.write(str(path), found)
                if not written:
                    given = ", ".join(f"{name} ({found.probability(name):.2f})" for name in found.labels)
                    say(f"{path}: {given or 'no label'}")
    if unread:
        named = ", ".join(unread[:_NAMED]) + (f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else "")
        raise DataError(f"{len(unread)} of {len(files)} images could not be read: {named}; replace them")


def export(
    run: Folder,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into its base.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder; RUN/merged by default.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="float32: not rounded, twice as large.")
    ] = "bfloat16",
    quiet: Quiet = False,
) -> None:
    """Write the model of a run as one checkpoint, which from_pretrained loads, and say how far its scores differ."""
    _require(run)
    if not merge:
        raise ConfigError("say --merge: a merged checkpoint is what export writes; the adapter is in RUN/adapter")
    from carefl_secure.runs.saved_model.predict import export_merged

    folder = out or run / "merged"
    with running(quiet) as reporter:
        reporter.note("merging on the whole base, without quantisation")
        found = export_merged(run, folder, dtype)
    say(f"merged checkpoint: {folder} ({found})")


def _require(run: Path) -> None:
    """Refuse a folder without a tuned model, before anything heavy is imported."""
    if not any((run / name).is_file() for name in ("task.json", "adapter/task.json", "config.yaml")):
        raise RunError(f"{run} holds neither a run nor an adapter; give runs/NAME, or a folder with task.json")
