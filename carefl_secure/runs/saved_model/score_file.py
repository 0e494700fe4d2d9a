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


class ScoreFile:
    """Writes predictions as they come, as CSV or JSON Lines."""

    def __init__(self, file: TextIO, *, table: bool) -> None:
        self._file, self._rows = file, csv.writer(file) if table else None
        if self._rows is not None:
            self._rows.writerow(["image", "label", "score", "threshold", "given", "true"])

    def write(self, image: str, found: Prediction, true: Sequence[str] | None = None) -> None:
        """Write one image; ``true`` are its labels, where they are known."""
        if self._rows is None:
            known = {} if true is None else {"true": list(true)}
            self._file.write(json.dumps(found.to_json(image=image, **known)) + "\n")
            return
        for label, score in found.scores.items():
            cut = math.inf if found.thresholds is None else found.thresholds[label]
            limit, right = cut if math.isfinite(cut) else "", "" if true is None else int(label in true)
            self._rows.writerow([image, label, score, limit, int(label in found.labels), right])


def check_suffix(path: Path) -> None:
    """Refuse (ConfigError) a file whose suffix sets no format."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{path} should end in .csv or .jsonl, which sets its format")


@contextmanager
def score_file(path: Path) -> Iterator[ScoreFile]:
    """Open a file that only its owner may read, in the format of its suffix.

    ConfigError is raised for another suffix, RunError where it cannot be written.
    """
    check_suffix(path)
    try:
        path.touch(mode=0o600)
        with path.open("w", encoding="utf-8", newline="") as file:
            yield ScoreFile(file, table=path.suffix == ".csv")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another file") from error
