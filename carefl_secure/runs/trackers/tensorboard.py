"""Figures of a run as TensorBoard's event files, in the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.summary import Writer

from carefl_secure.errors import RunError
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.trackers.base import MARK, Row, Tracker, figures_of


class _Events:
    """Writes ``<run>/tensorboard``; nothing leaves this machine."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / "tensorboard"
        self.where = f"TensorBoard: {self._path}; look at it with tensorboard --logdir {folder.path.parent}"
        with self._failing():
            self._known = self._read()
            self._writer = Writer(str(self._path))

    def rounds(self) -> set[int]:
        """Return the rounds in all files of the folder."""
        return self._known

    def record(self, row: Row) -> None:
        """Write every number of a row; the one that marks a whole row comes last."""
        step = int(row["round"])
        values = figures_of(row)
        values[MARK] = values.pop(MARK)
        with self._failing():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        with self._failing():
            self._writer.close()

    def _read(self) -> set[int]:
        if not self._path.is_dir():
            return set()
        events = EventAccumulator(str(self._path), size_guidance={TENSORS: 0})
        events.Reload()
        if MARK not in events.Tags()[TENSORS]:
            return set()
        return {int(event.step) for event in events.Tensors(MARK)}

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"TensorBoard's files under {self._path} cannot be written: {error.strerror or error}; "
                "free some space, or leave tensorboard out of run.trackers"
            ) from error


def open_tracker(folder: RunFolder) -> Tracker:
    """Open the event files of a run."""
    return _Events(folder)
