"""Progress for a person: bars on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from carefl_secure.cli.console import write_line
from carefl_secure.cli.figures import row_line
from carefl_secure.progress import Reporter, SilentReporter


@contextmanager
def running(quiet: bool) -> Iterator[Reporter]:
    """Yield the reporter of a long command; progress goes to standard error."""
    if quiet:
        yield SilentReporter()
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            yield reporter


class RichReporter:
    """A reporter that writes to a console; use it as a context manager.

    The console is standard error, so that standard output holds the result alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._plain: dict[str, tuple[int, int]] = {}  # done, total
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
            self._plain[task] = (0, total)
            self._line(f"{task}: {total} steps")

    def advance(self, task: str, step: int = 1) -> None:
        """Say that ``step`` more steps of the task are done; a log gets a line at each quarter."""
        if task in self._bars:
            self._progress.advance(self._bars[task], step)
        elif task in self._plain:
            before, total = self._plain[task]
            done = before + step
            self._plain[task] = (done, total)
            if total >= 4 and done < total and 4 * before // total < 4 * done // total:
                self._line(f"{task}: {done}/{total}")

    def finish(self, task: str) -> None:
        """Say that the task is over."""
        if task in self._bars:
            self._progress.remove_task(self._bars.pop(task))
        elif self._plain.pop(task, None):
            self._line(f"{task}: done")

    def note(self, text: str) -> None:
        """Show one sentence."""
        self._line(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        """Show the figures of one finished round as one line."""
        self._line(row_line(row))

    def _line(self, text: str) -> None:
        write_line(self._console, text)
