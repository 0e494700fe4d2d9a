"""EMOTIC as an archive of arrays: ``annots_arrs/annot_arrs_{split}.csv`` and ``img_arrs/*.npy``.

The tables have one column per category, *not* in EMOTIC's order, and name two array files per
person: ``Arr_name``, the whole image, and ``Crop_name``, the person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.corpora.emotic.person import (
    SPLITS,
    Person,
    PersonCounter,
    View,
    add_array,
    age_group,
    category,
    finish,
    gender,
)
from carefl_secure.data.readers.images import ImageArray, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import header, numbers, read_rows
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SILENT, Reporter, tracked

_VAD = ("Valence", "Arousal", "Dominance")
_SIZE = ("Width", "Height")
_CORNERS = ("X_min", "Y_min", "X_max", "Y_max")


def archive_folder(root: Path) -> Path | None:
    """Return the folder that holds ``annots_arrs``, where there is one."""
    for folder in (root, root / "archive"):
        if any((folder / "annots_arrs" / f"annot_arrs_{split}.csv").is_file() for split in SPLITS):
            return folder
    return None


def _columns(path: Path) -> dict[str, int]:
    """Return the id of each column that is a category, by name; all 26 must be there."""
    found: dict[str, int] = {}
    for name in header(path):
        try:
            place_ = category(name, path.name)
        except LabelError:
            continue  # one of the other columns
        if place_ in found.values():
            raise DataError(f"{path} has two columns for {EMOTIC.labels[place_]}; remove one")
        found[name] = place_
    missing = [label for k, label in enumerate(EMOTIC.labels) if k not in found.values()]
    if missing:
        raise DataError(f"{path} lacks the category column {', '.join(missing)}")
    return found


def _scaled(row: Mapping[str, str], picture: ImageArray, origin: str) -> Box | None:
    """Return the box in pixels of the array, where the table says how large the image was."""
    if not all(row.get(name) for name in (*_SIZE, *_CORNERS)) or not picture.path.is_file():
        return None
    width, height = numbers([row[name] for name in _SIZE], 2, origin)
    left, top, right, bottom = numbers([row[name] for name in _CORNERS], 4, origin)
    rows, columns = picture.shape()[:2]
    if width <= 0 or height <= 0:
        raise DataError(f"{origin}: an image of {width:g} x {height:g} pixels; correct the row")
    # Multiplied first: what ends at the edge of the image then ends at the edge of the array.
    return (left * columns / width, top * rows / height, right * columns / width, bottom * rows / height)


def load_emotic_archive(root: Path, *, view: View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read ``annots_arrs`` and ``img_arrs``; boxes are scaled to the arrays where sizes are given.

    ``annot_arrs_extra_train.csv`` is not read: it is no part of the published train split.
    Only persons with continuous values are kept.
    """
    folder = archive_folder(root)
    if folder is None:
        raise DataError(f"{root} has no annots_arrs/annot_arrs_train.csv")
    corpora = {}
    for split in SPLITS:
        table = folder / "annots_arrs" / f"annot_arrs_{split}.csv"
        if not table.is_file():
            continue
        column = "Arr_name" if view == "image" else "Crop_name"
        ids = _columns(table)
        rows = read_rows(table, ("Filename", column, *_VAD))
        builder = SplitBuilder(f"emotic-{view}/{split}", EMOTIC)
        counter = PersonCounter()
        for origin, row in tracked(rows, reporter, f"reading EMOTIC {split}"):
            name = row["Filename"].strip()
            where = f"{row.get('Folder', '').strip().strip('/')}/{name}".lstrip("/")
            ticks = numbers([row[c] for c in ids], len(ids), origin)
            valence, arousal, dominance = numbers([row[c] or math.nan for c in _VAD], 3, origin)
            person = Person(
                place=where,
                number=counter.next(where),
                box=(math.nan,) * 4,
                labels=tuple(sorted(k for k, v in zip(ids.values(), ticks, strict=True) if v > 0)),
                vad=(valence, arousal, dominance),
                gender=gender(row.get("Gender", ""), origin),
                age=age_group(row.get("Age", ""), origin),
            )
            picture = ImageArray(place(folder / "img_arrs", row[column], origin))
            box = _scaled(row, picture, origin) if view == "image" else None
            add_array(builder, person, picture, box)
        corpora[split] = finish(builder)
    if (folder / "annots_arrs" / "annot_arrs_extra_train.csv").is_file() and "train" in corpora:
        corpora["train"].skipped.remark("annot_arrs_extra_train.csv is not read", "train")
    return corpora


FORMAT = CorpusFormat(
    "emotic-archive",
    "EMOTIC as arrays: annots_arrs/annot_arrs_train.csv",
    tasks=lambda root, named: ("emotic",) if named or archive_folder(root) else (),
    load=lambda root, how: load_emotic_archive(root, view=how.view, reporter=how.reporter),
    views=("image", "person"),
    splits=SPLITS,
    annotation=tuple(f"*annot_arrs_{split}.csv" for split in SPLITS),
)
