"""Tables of a published corpus: rows that know where they stand, numbers and lists in cells."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carefl_secure.errors import DataError

__all__ = ["header", "literal", "numbers", "read_rows", "read_text"]


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; save it as UTF-8 text") from error


def header(path: Path) -> list[str]:
    """Return the column names of a table; what is no table has none that mean anything."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader([file.readline()]), [])


def read_rows(path: Path, needed: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table, each with its location, refusing missing columns and cells."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path} lacks the column {', '.join(missing)}; make the table again")
        for row in reader:
            origin = f"{path.name} line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{origin} does not have as many cells as the header; correct it")
            rows.append((origin, row))
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num} is not CSV: {error}") from error
    return rows


def literal(text: str, origin: str) -> list[Any]:
    """Read a list that was written as a Python literal; nothing in it is ever run."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{origin}: {text[:60]!r} is not a plain list; correct the row") from error
    return list(value) if isinstance(value, list | tuple) else [value]


def numbers(values: Sequence[Any], count: int, origin: str) -> list[float]:
    """Return exactly ``count`` numbers."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin}: {values!r} are not numbers; correct the row") from error
    if len(found) != count:
        raise DataError(f"{origin}: {len(found)} numbers where {count} are needed")
    return found
