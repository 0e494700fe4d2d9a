"""Scores of single images in a file: one JSON object a line, or one CSV row for each label."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from carefl_secure.errors import ConfigError, RunError
from carefl_secure.runs.saved_model.predict import Prediction

SUFFIXES = (".csv", ".jsonl")


class ScoreFile:
    """Writes predictions as they come; ``name`` is what an image is called: ``image``, ``record``."""

    def __init__(self, file: TextIO, suffix: str, name: str) -> None:
        self._file, self._name = file, name
        self._rows = csv.writer(file) if suffix == ".csv" else None
        self._head = False

    def write(self, image: str, found: Prediction, true: Sequence[str] | None = None) -> None:
        """Write one image; ``true`` are its labels, where they are known."""
        if self._rows is None:
            named: dict[str, object] = {self._name: image} if true is None else {self._name: image, "true": list(true)}
            self._file.write(json.dumps(found.to_json(**named)) + "\n")
            return
        if not self._head:
            self._rows.writerow(
                [self._name, "label", "score", "threshold", "given", *([] if true is None else ["true"])]
            )
            self._head = True
        for label, score in found.scores.items():
            cut = math.inf if found.thresholds is None else found.thresholds[label]
            row = [image, label, score, cut if math.isfinite(cut) else "", int(label in found.labels)]
            self._rows.writerow(row if true is None else [*row, int(label in true)])


def check_suffix(path: Path) -> None:
    """Refuse (ConfigError) a file whose suffix sets no format."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} should end in {' or '.join(SUFFIXES)}, which sets its format")


@contextmanager
def score_file(path: Path, name: str) -> Iterator[ScoreFile]:
    """Open a file that only its owner may read, CSV or JSON Lines by its suffix.

    ConfigError is raised for another suffix, RunError where it cannot be written.
    """
    check_suffix(path)
    try:
        path.touch(mode=0o600)
        with path.open("w", encoding="utf-8", newline="") as file:
            yield ScoreFile(file, path.suffix, name)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another file") from error
