"""How long-running work reports progress; only the command line draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

One = TypeVar("One")


class Reporter(Protocol):
    """Receives progress; never receives a value derived from one client's data."""

    def start(self, task: str, total: int) -> None:
        """Announce a task of ``total`` steps."""
        return

    def advance(self, task: str, step: int = 1) -> None:
        """Say that ``step`` more steps of the task are done."""
        return

    def finish(self, task: str) -> None:
        """Say that the task is over."""
        return

    def note(self, text: str) -> None:
        """Pass on one sentence for the person watching."""
        return

    def round(self, row: Mapping[str, float | int | str]) -> None:
        """Pass on the figures of one finished round."""
        return


class SilentReporter(Reporter):
    """A reporter that discards everything: for libraries, tests and scripts."""


SILENT: Reporter = SilentReporter()  # what functions report to where no reporter is given


def tracked(items: Iterable[One], reporter: Reporter, task: str, total: int | None = None) -> Iterator[One]:
    """Yield every item, and report each as a step of a task; without ``total``, the items must have a length."""
    reporter.start(task, len(items) if total is None else total)  # type: ignore[arg-type]
    for item in items:
        yield item
        reporter.advance(task)
    reporter.finish(task)
