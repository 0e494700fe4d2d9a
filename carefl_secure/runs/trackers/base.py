"""Figures of a run in other displays, on request: only rows already kept, and no run depends on a tracker."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from carefl_secure.config.load import read_yaml
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder

Scalar = float | int | str
Row = Mapping[str, Scalar]

MARK = "survivors"
"""A figure of every row: the rounds that have it are those that a tracker holds already."""


_SECTIONS = ("adapter", "evaluation", "federation", "performance", "privacy", "simulation", "stages")
_PATHS = {"privacy.ledgers"}


def figures_of(row: Row) -> dict[str, float]:
    """Return the numbers of a row by name, without the round's own."""
    return {name: float(value) for name, value in row.items() if name != "round" and not isinstance(value, str)}


def settings_of(folder: RunFolder) -> dict[str, str]:
    """Return the settings of ``config.yaml`` that tell nothing about files or machines."""
    config = read_yaml(folder.config)
    return {
        f"{section}.{name}": str(value)
        for section in _SECTIONS
        for name, value in config.get(section, {}).items()
        if f"{section}.{name}" not in _PATHS
    }


class Tracker(Protocol):
    """A further display of a run's figures; every method raises `RunError` when it fails."""

    where: str
    """One sentence for the user: where the figures go."""

    def rounds(self) -> set[int]:
        """Return the rounds that it holds already."""

    def record(self, row: Row) -> None:
        """Add one round's figures; on return they are written."""

    def close(self, finished: bool) -> None:
        """End; ``finished`` tells whether all rounds are done."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that what is asked for is installed (else `ConfigError`), without importing it."""
    for name in names:
        # A folder of that name, such as W&B leaves behind, has no origin.
        if getattr(importlib.util.find_spec(name), "origin", None) is None:
            raise ConfigError(
                f"run.trackers asks for {name}, which is not installed; "
                f"pip install 'carefl-secure[{'wandb' if name == 'wandb' else 'tracking'}]', or leave it out"
            )


class TrackedReporter:
    """A reporter that passes everything on, and every round to trackers too.

    Use it as a context around the rounds: entering it brings the trackers up to the rows that the
    folder holds, leaving it ends them. ``names`` are from ``tensorboard``, ``mlflow`` and ``wandb``. Raises
    `ConfigError` when a package is missing, `RunError` when a tracker cannot be opened.

    Guarantees
    ----------
    A tracker gets rows of ``metrics.jsonl`` and, except for TensorBoard, settings of ``config.yaml`` that name no
    file; each round once, resumed runs included. One that fails between the first round and the last is named in a
    note and left out from then on: the run goes on, and no row of ``metrics.jsonl`` is lost.
    """

    def __init__(self, reporter: Reporter, folder: RunFolder, names: Sequence[str]) -> None:
        check_trackers(names)
        self.start, self.advance = reporter.start, reporter.advance
        self.finish, self.note = reporter.finish, reporter.note
        self._next = reporter.round
        self._folder = folder
        # The package of a tracker is imported here, and in no other run.
        found = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
        self._trackers: dict[str, Tracker] = {name: module.open_tracker(folder) for name, module in found.items()}

    def __enter__(self) -> TrackedReporter:
        """Name the trackers, and send each the rounds that it lacks."""
        for name, tracker in list(self._trackers.items()):
            self.note(tracker.where)
            self._try(name, self._catch_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the trackers."""
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.close(kind is None))
        self._trackers.clear()

    def round(self, row: Row) -> None:
        """Pass on the figures of one finished round, which ``metrics.jsonl`` holds by now."""
        self._next(row)
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.record(row))

    def _catch_up(self, tracker: Tracker) -> None:
        known = tracker.rounds()
        for row in self._folder.read_metrics():
            if int(row["round"]) not in known:
                tracker.record(row)

    def _try(self, name: str, work: Callable[[Tracker], None]) -> None:
        try:
            work(self._trackers[name])
        except RunError as error:
            del self._trackers[name]
            self.note(
                f"WARNING: {name} FAILED AND GETS NO FURTHER FIGURES ({error}); the run goes on, "
                f"and every figure is in {self._folder.metrics}"
            )
