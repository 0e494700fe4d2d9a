"""The label files that go with C-EXPR-DB: fold lists, and annotation tables by time.

Labels of the challenge's videos are not public. These files were made by another team; a score on
them is not a score in the challenge.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.data.readers.tables import read_lines, read_text
from carefl_secure.data.records import CEXPR
from carefl_secure.errors import DataError, LabelError

OTHER = len(CEXPR.labels)  # the id of what is none of the seven classes; it is annotated and never scored
_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Clip:
    """One video or clip of a list."""

    name: str  # path below the folder of videos, without a suffix: Sadly-Fearful/24_Sadly-Fearful_0
    label: int | None  # 0 to 6, OTHER, or none

    @property
    def stem(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        """The video that the clip was cut from: what stands before the first underscore."""
        return self.stem.split("_")[0]


@dataclass(frozen=True)
class Segment:
    """A stretch of a video with one label: ``begin`` and ``end`` in seconds, ``end`` excluded."""

    begin: float
    end: float
    label: int


def fold_folder(base: Path, fold: int) -> Path | None:
    """Return the folder of one fold's lists, where there is one."""
    for folder in (
        base / "folds" / f"split-{fold}",
        base / "folds" / base.name / f"split-{fold}",
        base.parent / "folds" / base.name / f"split-{fold}",
    ):
        if any((folder / f"{split}.txt").is_file() for split in ("train", "val", "test")):
            return folder
    return None


def _class(words: str) -> int | None:
    plain = words.replace("-", " ").strip().lower()
    known = {label.lower(): k for k, label in enumerate(CEXPR.labels)} | {"other": OTHER}
    return known.get(plain)


def read_fold(path: Path) -> list[Clip]:
    """Read ``path,label,transcript``; a transcript may itself hold commas and is not kept.

    In the challenge's lists, whose paths start with ``videos/``, the label is a placeholder and ignored. A repeated
    clip is refused, and a label that differs from the class in the path.
    """
    clips, seen = [], set[str]()
    for origin, line in read_lines(path):
        cells = line.split(",", 2)
        if len(cells) < 2 or not cells[1].strip().isdecimal():
            raise DataError(f"{origin} is not 'path,label,transcript': {line[:60]!r}")
        name, label = cells[0].strip(), int(cells[1])
        if not name or ".." in name.split("/") or name.startswith("/"):
            raise DataError(f"{origin}: the path {name!r} does not stay inside the corpus")
        if name in seen:
            raise DataError(f"{origin}: {name} stands in the list twice; remove one line")
        seen.add(name)
        if name.startswith("videos/"):
            clips.append(Clip(name, None))
            continue
        if label > OTHER:
            raise LabelError(f"{origin}: the label {label} is not one of 0 to {OTHER}")
        folder = _class(name.split("/")[0]) if "/" in name else None
        if folder is not None and folder != label:
            raise LabelError(f"{origin}: the label {label} differs from the folder of {name}")
        clips.append(Clip(name, label))
    return clips


def _seconds(text: str, origin: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{origin}: the time {text!r} is not hh:mm:ss.ms")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_annotation(path: Path) -> list[Segment]:
    """Read a table of begin, end and one column for each class, by name; exactly one class of a row is 1."""
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    header = [name.strip() for name in rows[0]] if rows else []
    times = [k for k, name in enumerate(header) if name.lower().startswith(("begin", "end"))]
    classes = {k: label for k, name in enumerate(header) if (label := _class(name)) is not None}
    missing = sorted(set(range(OTHER)) - set(classes.values()))
    if len(times) != 2 or missing:
        lacking = ", ".join(CEXPR.labels[k] for k in missing) or "Begin Time or End Time"
        raise DataError(f"{path} lacks the column {lacking}; fetch the annotation again")
    segments = []
    for number, row in enumerate(rows[1:], 2):
        origin = f"{path.name} line {number}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{origin} does not have as many cells as the header; correct it")
        begin, end = (_seconds(row[k], origin) for k in times)
        chosen = [label for k, label in classes.items() if row[k].strip() not in ("", "0")]
        if begin >= end or len(chosen) != 1:
            raise DataError(
                f"{origin}: a row needs a begin before its end and exactly one class; this one has "
                f"{begin} to {end} s and {len(chosen)} classes"
            )
        segments.append(Segment(begin, end, chosen[0]))
    return segments


def labels_at(segments: Sequence[Segment], second: float) -> set[int]:
    """Return the labels that hold at one moment."""
    return {part.label for part in segments if part.begin <= second < part.end}
