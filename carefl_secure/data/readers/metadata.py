"""The rows of an image folder's ``metadata.jsonl`` or ``metadata.csv``, checked one by one."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from carefl_secure.errors import DataError, LabelError

__all__ = ["Box", "Row", "read_metadata"]

Box = tuple[float, float, float, float]
_OWN = frozenset({"file_name", "label", "labels", "subject", "box", "bbox"})


@dataclass(frozen=True)
class Row:
    """One record before its labels have ids."""

    file_name: str
    labels: tuple[str, ...]
    several: bool
    subject: str | None
    attributes: Mapping[str, str]
    box: Box | None
    origin: str


def _below(name: str, origin: str) -> str:
    """Return a path inside the folder in POSIX form, refusing one that points out of it."""
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        not path.name
        or path.is_absolute()
        or PureWindowsPath(name).drive
        or ".." in path.parts
        or "\0" in name
    ):
        raise DataError(
            f"{origin}: file_name {name!r} does not stay inside the folder; "
            "write a path relative to it, without '..'"
        )
    return str(path)


def _labels(row: Mapping[str, Any], origin: str) -> tuple[tuple[str, ...], bool]:
    """Return the label words, and whether the row may carry several."""
    if ("label" in row) == ("labels" in row):
        raise DataError(f"{origin}: give either 'label' (one word) or 'labels' (a list)")
    several = "labels" in row
    words: Any = row["labels"] if several else [row["label"]]
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise LabelError(
            f"{origin}: a label must be a word as text, not {words!r}; "
            "write the label's name instead of a number"
        )
    return tuple(dict.fromkeys(words)), several


def _box(row: Mapping[str, Any], origin: str) -> Box | None:
    if "box" in row and "bbox" in row:
        raise DataError(f"{origin}: give either 'box' or 'bbox', not both")
    value = row.get("box", row.get("bbox"))
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        raise DataError(f"{origin}: a box is a list of four numbers in pixels, not {value!r}")
    left, top, right, bottom = (float(v) for v in value)
    if not (left < right and top < bottom):
        raise DataError(
            f"{origin}: the box {value} is empty; write [left, top, right, bottom] in pixels "
            "(a box with width and height must be converted)"
        )
    return left, top, right, bottom


def _plain(value: Any) -> bool:
    """Tell whether a value can be an attribute; NaN stands for a missing one."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _word(value: Any) -> str:
    """Write an attribute as text; whole numbers lose their point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _row(row: Mapping[str, Any], origin: str) -> Row:
    name = row.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{origin}: 'file_name' is missing; name the image of each record")
    labels, several = _labels(row, origin)
    subject = row.get("subject")
    if subject is not None and (isinstance(subject, bool) or not isinstance(subject, str | int)):
        raise DataError(f"{origin}: a subject is a word or a whole number, not {subject!r}")
    return Row(
        file_name=_below(name, origin),
        labels=labels,
        several=several,
        subject=None if subject in (None, "") else str(subject),
        attributes={
            key: _word(value) for key, value in row.items() if key not in _OWN and _plain(value)
        },
        box=_box(row, origin),
        origin=origin,
    )


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        origin = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{origin} is not JSON: {error}; write one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{origin} is not an object; write one JSON object per line")
        rows.append(_row(row, origin))
    return rows


def _read_csv(path: Path) -> list[Row]:
    rows = []
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for cells in reader:
            origin = f"{path.name} line {reader.line_num}"
            if len(cells) != len(header) or None in cells.values():
                raise DataError(f"{origin} does not have as many cells as the header; correct it")
            row: dict[str, Any] = {key: text for key, text in cells.items() if text != ""}
            if "labels" in cells:
                row["labels"] = [w.strip() for w in cells["labels"].split("|") if w.strip()]
            for key in ("box", "bbox"):
                if key in row:
                    row[key] = _numbers(row[key], origin)
            rows.append(_row(row, origin))
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num} is not CSV: {error}") from error
    return rows


def _numbers(text: str, origin: str) -> list[float]:
    try:
        return [float(word) for word in text.strip("[] ").replace(",", " ").split()]
    except ValueError as error:
        raise DataError(f"{origin}: a box is four numbers in pixels, not {text!r}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; save it as UTF-8 text") from error


def read_metadata(path: Path) -> list[Row]:
    """Read a metadata file; its suffix says which kind.

    Raises
    ------
    DataError
        If the file or a row is malformed; the text names the line.
    LabelError
        If a label is not a word.
    """
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
