"""The rows of an image folder's ``metadata.jsonl`` or ``metadata.csv``, checked one by one."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carefl_secure.data.readers.tables import below, literal, read_rows, read_text
from carefl_secure.errors import DataError, LabelError
from carefl_secure.strict_json import unique_names

Box = tuple[float, float, float, float]
NULLS = ("", "nan", "NaN", "null", "NULL", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "-nan", "-NaN")
"""Cells of a CSV table that mean: nothing here."""
SEPARATORS = ("|", ";", ",")  # what may stand between the labels in a CSV cell; one table uses one of them
_OWN = frozenset({"file_name", "label", "labels", "subject", "box", "bbox"})
_READ = _OWN | {"split"}


@dataclass(frozen=True)
class Row:
    """One record before its labels have ids."""

    file_name: str  # relative to the folder of the metadata file
    labels: tuple[str, ...] | None  # None for an unlabelled record, empty where none of several labels holds
    several: bool  # whether the table allows several labels per record
    subject: str | None
    attributes: Mapping[str, str]
    box: Box | None
    origin: str  # file and line, for errors


def label_word(text: str) -> str:
    """Return a label without outer blanks, in Unicode form C, as all labels are compared."""
    return unicodedata.normalize("NFC", text).strip()


def _labels(row: Mapping[str, Any], origin: str) -> tuple[tuple[str, ...] | None, bool]:
    if ("label" in row) == ("labels" in row):
        raise DataError(
            f"{origin}: give either 'label' (one word) or 'labels' (a list); the row has {', '.join(map(str, row))}"
        )
    several = "labels" in row
    value: Any = row["labels"] if several else row["label"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, several
    words: Any = value if several else [value]
    if not isinstance(words, list) or not all(isinstance(w, str) and w.strip() for w in words):
        raise LabelError(
            f"{origin}: a label must be a word as text, not {value!r}; write the label's name "
            "instead of a number, 'label' for one word and 'labels' for a list of words"
        )
    if null := next((word for word in words if word.strip() in NULLS), None):
        raise LabelError(f"{origin}: the label {null!r} reads as no label; write null without quotes, or another word")
    return tuple(dict.fromkeys(map(label_word, words))), several


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
    for key in row:
        if key not in _READ and (meant := re.sub("[ -]", "_", key.strip().lower())) in _READ:
            raise DataError(f"{origin}: the column {key!r} is not read under this name; rename it to {meant}")
    name = row.get("file_name")
    if not isinstance(name, str):
        raise DataError(
            f"{origin}: 'file_name' is missing; name the image of each record (the row has "
            f"{', '.join(map(str, row)) or 'nothing'})"
        )
    labels, several = _labels(row, origin)
    subject = row.get("subject")
    if isinstance(subject, float) and (math.isnan(subject) or subject.is_integer()):
        subject = None if math.isnan(subject) else int(subject)  # pandas writes 7 as 7.0
    if subject is not None and (isinstance(subject, bool) or not isinstance(subject, str | int)):
        raise DataError(f"{origin}: a subject is a word or a whole number, not {subject!r}")
    subject = None if subject is None else str(subject).strip()
    return Row(
        file_name=below(name, origin),
        labels=labels,
        several=several,
        subject=subject or None,
        attributes={key: _word(value) for key, value in row.items() if key not in _OWN and _plain(value)},
        box=_box(row, origin),
        origin=origin,
    )


def _jsonl(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        origin = f"{name} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=unique_names)
            json.dumps(row, ensure_ascii=False).encode()  # refuses half a character
        except (ValueError, RecursionError) as error:
            raise DataError(f"{origin} is not JSON: {error}; write one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{origin} is not an object; write one JSON object per line")
        yield origin, row


def _csv(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = read_rows(path, ("file_name",), name)
    separator = _separator(name, [cells["labels"] for _, cells in rows if "labels" in cells])
    alone = {label_word(cells["label"]) for _, cells in rows if "label" in cells}
    for origin, cells in rows:
        row: dict[str, Any] = {key: text for key, text in cells.items() if text != ""}
        if "label" in cells:
            row["label"] = _one_label(cells["label"], alone, origin)
        if "labels" in cells:
            row["labels"] = _several_labels(cells["labels"], separator, origin)
        for key in ("box", "bbox"):
            if key in row:
                row[key] = _numbers(row[key], origin)
        if cells.get("subject", "") in NULLS:
            row["subject"] = None
        yield origin, row


def _whole(word: str) -> str:
    """Return ``3`` for ``3.0``, which is how pandas writes a column of numbers with gaps."""
    head, point, tail = word.strip().partition(".")
    return head if point and head.isdecimal() and tail and not tail.strip("0") else word


def _is_list(cell: str) -> bool:
    return cell.strip()[:1] in ("[", "(", "{")


def _one_label(cell: str, alone: set[str], origin: str) -> str | None:
    if cell.strip() in NULLS:
        return None
    for sign in SEPARATORS:
        parts = [label_word(part) for part in cell.split(sign)]
        if _is_list(cell) or (len(parts) > 1 and (sign == "|" or alone.intersection(parts))):
            raise LabelError(
                f"{origin}: {cell!r} looks like several labels; name the column 'labels' and separate them with |"
            )
    return _whole(cell)


def _separator(name: str, cells: Sequence[str]) -> str | None:
    plain = [cell for cell in cells if not _is_list(cell)]
    used = [sign for sign in SEPARATORS if any(sign in cell for cell in plain)]
    if len(used) > 1:
        raise LabelError(f"{name} separates labels by {' and by '.join(used)}; separate them with | alone")
    return used[0] if used else None


def _several_labels(cell: str, separator: str | None, origin: str) -> list[str] | None:
    """Read ``a|b``, ``a;b``, ``a, b`` or a list as Python or JSON writes it."""
    if _is_list(cell):
        try:
            # NumPy writes ['a' 'b'], which Python would join into one word.
            unclear = cell.strip()[0] == "{" or re.search(r"""['"]\s*['"]""", cell[1:-1])
            found = None if unclear else literal(cell, origin)
        except DataError:
            found = None
        if found is None or not all(isinstance(word, str) and word.strip() for word in found):
            raise LabelError(
                f"{origin}: {cell[:60]!r} is not a list of words; write the labels as words separated by |"
            )
        return found
    if cell.strip() in NULLS[1:]:
        return None
    return [_whole(word) for word in cell.split(separator) if word.strip()]


def _numbers(text: str, origin: str) -> list[float]:
    try:
        return [float(word) for word in text.strip("[]() ").replace(",", " ").split()]
    except ValueError as error:
        raise DataError(f"{origin}: a box is four numbers in pixels, not {text!r}") from error


def read_metadata(path: Path, name: str | None = None) -> list[Row]:
    """Read a metadata file of the kind that its suffix says; `DataError` or `LabelError` state ``name`` and line."""
    read = _jsonl if path.suffix == ".jsonl" else _csv
    return [_row(row, origin) for origin, row in read(path, name or path.name)]
