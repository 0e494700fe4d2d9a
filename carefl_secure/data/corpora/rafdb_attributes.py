"""RAF-DB's annotation of an image: landmarks, perceived attributes, a face box."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import read_text
from carefl_secure.errors import DataError

GENDERS = ("male", "female", "unsure")
RACES = ("caucasian", "african_american", "asian")
AGES = ("0-3", "4-19", "20-39", "40-69", "70+")
_KINDS = (("gender", GENDERS), ("race", RACES), ("age_group", AGES))


@dataclass(frozen=True)
class Attributes:
    """Annotators' judgements, which need not be true of the person."""

    attributes: Mapping[str, str] = field(default_factory=dict)  # gender, race and age_group
    landmarks: list[list[float]] | None = None  # eye centres, nose tip, mouth corners; original pixels
    fault: str | None = None  # why there are none


def _floats(line: str, count: int) -> list[float] | None:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def read_attributes(path: Path) -> Attributes:
    """Read the eight lines of ``*_manu_attri.txt``; a face without them is still used, so a fault is returned."""
    if not path.is_file():
        return Attributes(fault="no manual attributes")
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except DataError:
        return Attributes(fault="manual attributes malformed")
    points = [_floats(line, 2) for line in lines[:5]]
    codes = [int(line) if line.isdecimal() else -1 for line in lines[5:]]
    landmarks = [point for point in points if point is not None]
    if (
        len(landmarks) != 5
        or len(codes) != 3
        or not all(0 <= c < len(words) for c, (_, words) in zip(codes, _KINDS, strict=True))
    ):
        return Attributes(fault="manual attributes malformed")
    return Attributes({name: words[code] for code, (name, words) in zip(codes, _KINDS, strict=True)}, landmarks)


def read_box(path: Path) -> Box | None:
    """Read ``xmin ymin xmax ymax``; ``None`` where the file is missing or says something else."""
    try:
        values = _floats(read_text(path), 4) if path.is_file() else None
    except DataError:
        return None
    return (values[0], values[1], values[2], values[3]) if values else None
