"""Progress and figures of a run for a person, on a terminal or in a log, and as strict JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from carefl_secure.cli.console import result_console, result_table, write_line
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.rounding import plain, round_up, signal_to_noise

if TYPE_CHECKING:
    from carefl_secure.runs.summary import RunSummary

_SHOWN = ("stage", "round", "epsilon", "mAP", "macro_f1", "survivors", "bytes_up", "bytes_down", "seconds")


def figure(name: str, value: Any) -> str:
    """Write one value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral) and not name.startswith("bytes"):
        return str(int(value))
    if name.startswith("bytes"):
        return _bytes(float(value))
    if name.startswith("epsilon"):
        return round_up(float(value))
    if name.endswith("seconds"):
        return f"{float(value):.1f}"
    return f"{float(value):.3f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def row_line(row: Mapping[str, Any]) -> str:
    """Write one round as ``name value`` pairs, with the two norms as one figure."""
    shown = {name: figure(name, value) for name, value in row.items()}
    *norms, banded = (shown.pop(name, None) for name in ("gradient_norm", "noise_norm", "bands"))
    if all(norms):
        found = signal_to_noise(float(row["gradient_norm"]), float(row["noise_norm"]), banded=banded is not None)
        shown["signal/noise"] = found
    return "  ".join(f"{name} {value}" for name, value in shown.items())


def to_json(summary: RunSummary) -> str:
    """Return the summary as one JSON object; an infinite epsilon is null."""
    whole = plain(summary)
    whole["rounds"] = whole.pop("rows")
    return json.dumps(whole, indent=2, allow_nan=False)


def _rounds(summary: RunSummary) -> Table:
    present = {name for row in summary.rows for name in row}
    names = [name for name in _SHOWN if name in present]
    table = result_table(*(name.replace("_", " ") for name in names))
    for row in summary.rows:
        table.add_row(*(figure(name, row.get(name)) for name in names))
    return table


def _scores(summary: RunSummary) -> Table:
    names = list(dict.fromkeys([*summary.before, *summary.after])) or ["mAP"]
    table = result_table("", *(name.replace("_", " ") for name in names), left=("",))
    for baseline, value in summary.baselines.items():
        row = (figure(name, value) if name == "mAP" else "" for name in names)
        table.add_row(f"baseline: {baseline.replace('_', ' ')}", *row)
    lines = [("before", summary.before), ("after", summary.after)]
    if summary.stages:  # each with its own labels; the untuned model with the last stage's
        lines = [("untuned", summary.before)]
        for stage in summary.stages:
            lines += [(f"before {stage.name}", stage.before), (f"after {stage.name}", stage.after)]
    for label, scores in lines:
        table.add_row(label, *(figure(name, scores.get(name)) for name in names))
    return table


def show(summary: RunSummary) -> None:
    """Write the tables, the privacy statement and the run folder."""
    console = result_console()
    if summary.rows:
        console.print(_rounds(summary))
    console.print(_scores(summary))
    folder = f"run folder: {summary.folder} ({figure('seconds', summary.seconds)} s)"
    for line in (summary.verdict, *summary.remarks, summary.promise, folder):
        write_line(console, line)


@contextmanager
def running(quiet: bool) -> Iterator[Reporter]:
    """Yield the reporter of a long command; progress goes to standard error."""
    if quiet:
        yield SilentReporter()
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            yield reporter


_SILENCE = 10.0  # seconds


class RichReporter:
    """A reporter that writes to a console, a command's standard error; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._plain: dict[str, tuple[int, int]] = {}  # done, total
        self._inner: dict[str, float] = {}  # tasks within others that a log does not show yet, and their start
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RichReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, task: str, total: int) -> None:
        """Announce a task of ``total`` steps."""
        if self._console.is_terminal:
            self._bars[task] = self._progress.add_task(task, total=total)
        else:
            if self._plain:
                self._inner[task] = time.monotonic()
            else:
                self._line(f"{task}: {total} steps")
            self._plain[task] = (0, total)

    def advance(self, task: str, step: int = 1) -> None:
        """Say that ``step`` more steps are done; a log gets a line each quarter, an inner task after ten seconds."""
        if task in self._bars:
            self._progress.advance(self._bars[task], step)
        elif task in self._plain:
            before, total = self._plain[task]
            done = before + step
            self._plain[task] = (done, total)
            slow = task not in self._inner or time.monotonic() - self._inner[task] > _SILENCE
            if slow and total >= 4 and done < total and 4 * before // total < 4 * done // total:
                self._inner.pop(task, None)
                self._line(f"{task}: {done}/{total}")

    def finish(self, task: str) -> None:
        """Say that the task is over."""
        if task in self._bars:
            self._progress.remove_task(self._bars.pop(task))
        elif self._plain.pop(task, None) and self._inner.pop(task, None) is None:
            self._line(f"{task}: done")

    def note(self, text: str) -> None:
        """Show one sentence."""
        self._line(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        """Show the figures of one finished round as one line."""
        self._line(row_line(row))

    def _line(self, text: str) -> None:
        write_line(self._console, text)
