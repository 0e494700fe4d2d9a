"""FER-2013: faces of 48 x 48 grey pixels in one column of a table (arXiv 1307.0414).

``fer2013.csv`` has the columns ``emotion`` (0 to 6), ``pixels`` (grey values separated by blanks)
and ``Usage``; ``icml_face_data.csv`` has them in another order. Without ``Usage`` the names
``train.csv`` and ``test.csv`` say the split. The release names no person.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
from PIL import Image

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, ReadOptions, SplitBuilder
from carefl_secure.data.corpora.image_folder_layout import split_name
from carefl_secure.data.readers.file_kinds import image_suffixes, suffix_of
from carefl_secure.data.readers.tables import header, read_rows
from carefl_secure.data.records import FER, Record
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import tracked

_USAGES = {"training": "train", "publictest": "val", "privatetest": "test"}


@dataclass(frozen=True)
class PixelRow:
    """A square grey image whose bytes stood in a cell of the table ``path``."""

    path: Path
    pixels: bytes

    def open(self) -> Image.Image:
        """Return the image as RGB."""
        side = isqrt(len(self.pixels))
        return Image.frombytes("L", (side, side), self.pixels).convert("RGB")


def pixel_tables(root: Path) -> list[Path]:
    """Return the tables in a folder, or one folder below, that have a column of pixels."""
    found = [path for form in ("*", "*/*") for path in sorted(root.glob(f"{form}.[cC][sS][vV]"))]
    return [path for path in found if path.is_file() and "pixels" in {name.strip() for name in header(path)}]


def _check_alone(root: Path, tables: Sequence[Path]) -> None:
    """Refuse image files next to the tables, and tables that may hold the same images."""
    image = next((p for p in root.rglob("*") if suffix_of(p.name) in image_suffixes()), None)
    if image is not None:
        raise DataError(
            f"{root} holds images as files ({image}) and as pixels in {tables[0]}; move one of them out of the folder"
        )
    names = [split_name(path.stem) for path in tables if "Usage" not in header(path)]
    if len(tables) > 1 and (len(names) < len(tables) or len({*names} - {None}) < len(names)):
        raise DataError(
            f"{root} has several tables with pixels ({', '.join(path.name for path in tables)}), "
            "which may hold the same images; keep one, or one for each split"
        )


def _pixels(cell: str, origin: str) -> bytes:
    try:
        values = np.array(cell.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{origin}: pixels must be whole numbers, not {cell[:40]!r}") from error
    if not values.size or isqrt(values.size) ** 2 != values.size:
        raise DataError(f"{origin}: {values.size} pixels do not make a square; restore the table")
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"{origin}: grey values lie from 0 to 255; restore the table")
    return values.astype(np.uint8).tobytes()


def _split(row: Mapping[str, str], path: Path, origin: str) -> str:
    if "Usage" not in row:
        return split_name(path.stem) or "all"
    usage = _USAGES.get(row["Usage"].strip().lower())
    if usage is None:
        raise DataError(
            f"{origin}: the usage {row['Usage']!r} is none of Training, PublicTest and PrivateTest; correct the row"
        )
    return usage


def load_fer2013(root: Path, options: ReadOptions) -> dict[str, FileCorpus]:
    """Read the tables of a folder; rows without an emotion are counted as skipped, malformed ones refused."""
    csv.field_size_limit(1 << 24)  # pixels of an image of up to 2,000 x 2,000
    builders: dict[str, SplitBuilder] = {}
    tables = pixel_tables(root)
    if tables:
        _check_alone(root, tables)
    for path in tables:
        rows = read_rows(path, ("pixels",))
        for origin, row in tracked(rows, options.reporter, f"reading {path.name}"):
            split = _split(row, path, origin)
            builder = builders.setdefault(split, SplitBuilder(f"fer2013/{split}", FER))
            key, label = origin.replace(" line ", "/"), row.get("emotion", "").strip()
            pixels = _pixels(row["pixels"], origin)
            if not label:
                builder.skipped.drop("no label", key)
            elif label not in map(str, range(len(FER.labels))):
                raise LabelError(f"{origin}: the emotion {label!r} is not one of 0 to 6")
            else:
                builder.add(Record(key, (int(label),)), PixelRow(path, pixels))
    if not builders:
        raise DataError(f"{root} has no table with a column pixels; put fer2013.csv there")
    kept = [split for split in ("train", "val", "test", "all") if split in builders]
    return {split: builders[split].corpus("label its rows") for split in kept}


FORMAT = CorpusFormat(
    "fer2013",
    "FER-2013: a table with the columns emotion and pixels, such as fer2013.csv",
    tasks=lambda root, named: ("fer2013",) if named or pixel_tables(root) else (),
    load=load_fer2013,
    annotation=("nothing but tables",),
)
