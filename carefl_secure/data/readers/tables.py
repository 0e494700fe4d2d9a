"""Tables of a published corpus: rows that know where they stand, numbers and lists in cells."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from carefl_secure.errors import DataError


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; save it as UTF-8 text") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every line of a list that is not blank, after its file and number for errors."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path.name} line {number}", line


def header(path: Path) -> list[str]:
    """Return the column names of a table; what is no table has none that mean anything."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader([file.readline()]), [])


def read_rows(path: Path, needed: Sequence[str], name: str | None = None) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table, each with its location, refusing missing columns and cells.

    The separator is a comma, semicolon or tab, whichever makes the first line hold all columns ``needed``. Blanks
    around column names are cut off. Errors call the file ``name``.
    """
    text, name = read_text(path), name or path.name
    first = [column.strip('" \r') for column in text.partition("\n")[0].split(";")]
    tabbed = [column.strip('" \r') for column in text.partition("\n")[0].split("\t")]
    sign = ";" if set(needed) <= set(first) else "\t" if set(needed) <= set(tabbed) else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=sign)
    rows = []
    try:
        header = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = header
        if missing := [column for column in needed if column not in header]:
            raise DataError(
                f"{name} line 1 lacks the column {', '.join(missing)}; it has {', '.join(header)[:200] or 'none'}"
            )
        if len(set(header)) != len(header):
            raise DataError(f"{name} line 1 names a column twice; remove one of them")
        for row in reader:
            origin = f"{name} line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{origin} does not have as many cells as the header; correct it")
            rows.append((origin, row))
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num} is not CSV: {error}") from error
    return rows


def below(name: str, origin: str, folder: str = "the folder") -> str:
    """Return a relative path in POSIX form; a `DataError` refuses one that is empty or leads out of its folder."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    drive = PureWindowsPath(name).drive
    if not path.name or path.is_absolute() or drive or ".." in path.parts or "\0" in name:
        raise DataError(
            f"{origin}: the file name {name!r} does not stay inside {folder}; write a path "
            "relative to it, without '..'"
        )
    return str(path)


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
