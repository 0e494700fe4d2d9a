"""EMOTIC as the public converter writes it: ``emotic_pre/{split}.csv``, one person per row.

Cells hold lists as Python literals. Optional stacks hold images (``{split}_context_arr.npy``,
``{split}_body_arr.npy``) and labels (``{split}_cat_arr.npy``). The converter drops persons whose
image cannot be read or who lack categories or continuous values.

Or as an archive of arrays: ``annots_arrs/annot_arrs_{split}.csv`` and ``img_arrs/*.npy``. Its tables have one column
per category, *not* in EMOTIC's order, and name two array files per person: ``Arr_name``, the whole image, and
``Crop_name``, the person.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.corpora.emotic import person as emotic
from carefl_secure.data.readers.images import ImageArray, open_array, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import header, literal, numbers, read_rows
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SILENT, Reporter, tracked

_COLUMNS = ("Folder", "Filename", "BBox", "Categorical_Labels", "Continuous_Labels")


def table_folder(root: Path) -> Path | None:
    """Return the folder of ``{split}.csv`` tables, where there is one."""
    for folder in (root / "emotic_pre", root):
        for split in emotic.SPLITS:
            path = folder / f"{split}.csv"
            if path.is_file() and "Categorical_Labels" in header(path):
                return folder
    return None


def _persons(path: Path) -> Iterator[emotic.Person]:
    seen = Counter[str]()  # persons of an image, in the order of the table
    for origin, row in read_rows(path, _COLUMNS):
        where = f"{row['Folder'].strip().strip('/')}/{row['Filename'].strip()}".replace("\\", "/")
        left, top, right, bottom = numbers(literal(row["BBox"], origin), 4, origin)
        # nan is no literal, yet converters write it
        cells = row["Continuous_Labels"].replace("nan", "None")
        vad = [math.nan if v is None else v for v in literal(cells, origin)]
        valence, arousal, dominance = numbers(vad, 3, origin)
        seen[where] += 1
        yield emotic.Person(
            place=where,
            number=seen[where],
            box=(left, top, right, bottom),
            labels=emotic.category_ids(map(str, literal(row["Categorical_Labels"], origin)), origin),
            vad=(valence, arousal, dominance),
            gender=emotic.gender(row.get("Gender", ""), origin),
            age=emotic.age_group(row.get("Age", ""), origin),
        )


def _stack(path: Path, rows: int) -> npt.NDArray[np.generic]:
    """Return a stack, mapped; it must have as many rows as the table."""
    stack = open_array(path)
    found = len(stack) if stack.ndim else 0
    if found != rows:
        raise DataError(
            f"{path} has {found} rows and the table has {rows}: they are not of one making; run the converter again"
        )
    return stack


def _check_order(path: Path, persons: Sequence[emotic.Person]) -> None:
    """Refuse a stack of labels that says something else than the table."""
    stored = _stack(path, len(persons))
    if stored.ndim != 2 or not np.issubdtype(stored.dtype, np.number):
        raise DataError(f"{path} is no table of [persons, categories]; run the converter again")
    ticks = np.asarray(stored, np.float64) > 0
    for at, person in enumerate(persons):
        if tuple(np.flatnonzero(ticks[at]).tolist()) != person.labels:
            raise LabelError(
                f"row {at} of {path} has other labels than {person.key} in the table: the columns "
                "are in another order, or the files are not of one making; run the converter again"
            )


def load_emotic_csv(root: Path, *, view: emotic.View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read ``emotic_pre``: tables, with stacks of images or with the original images.

    Stacks are used where present. A stack has lost the size of the image, so its whole-image view has no boxes.
    ``root`` is the folder of the tables, or the one that holds ``emotic_pre``; only persons with continuous values are
    kept. `LabelError` is raised too where table and label stack disagree.
    """
    folder = table_folder(root)
    if folder is None:
        raise DataError(f"{root} has no train.csv with the column Categorical_Labels")
    images = emotic.image_root(root) or emotic.image_root(root.parent)
    corpora = {}
    for split in emotic.SPLITS:
        table = folder / f"{split}.csv"
        if not table.is_file():
            continue
        persons = list(_persons(table))
        stack = folder / f"{split}_{'context' if view == 'image' else 'body'}_arr.npy"
        if (labels := folder / f"{split}_cat_arr.npy").is_file():
            _check_order(labels, persons)
        builder = SplitBuilder(f"emotic-{view}/{split}", EMOTIC)
        if stack.is_file():
            _stack(stack, len(persons))
        elif images is None:
            raise DataError(
                f"{folder} has {table.name} but neither {stack.name} nor the images: put the "
                "image folders (emotic/mscoco and so on) next to it"
            )
        for row, person in enumerate(tracked(persons, reporter, f"reading EMOTIC {split}")):
            if stack.is_file():
                emotic.add_array(builder, person, ImageArray(stack, row), None)
            elif images is not None:
                emotic.add_person(builder, person, images, view)
        corpora[split] = emotic.finish(builder)
    return corpora


FORMAT = CorpusFormat(
    "emotic-table",
    "EMOTIC as emotic_pre: train.csv with the column Categorical_Labels",
    tasks=lambda root, named: ("emotic",) if named or table_folder(root) else (),
    load=lambda root, how: load_emotic_csv(root, view=how.view, reporter=how.reporter),
    views=("image", "person"),
    splits=emotic.SPLITS,
    annotation=tuple(f"*{split}{end}" for split in emotic.SPLITS for end in (".csv", "_cat_arr.npy")),
)


_VAD = ("Valence", "Arousal", "Dominance")
_SIZE = ("Width", "Height")
_CORNERS = ("X_min", "Y_min", "X_max", "Y_max")


def archive_folder(root: Path) -> Path | None:
    """Return the folder that holds ``annots_arrs``, where there is one."""
    for folder in (root, root / "archive"):
        if any((folder / "annots_arrs" / f"annot_arrs_{split}.csv").is_file() for split in emotic.SPLITS):
            return folder
    return None


def _category_columns(path: Path) -> dict[str, int]:
    """Return the id of each column that is a category, by name; all 26 must be there."""
    found: dict[str, int] = {}
    for name in header(path):
        try:
            place_ = emotic.category(name, path.name)
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


def load_emotic_archive(
    root: Path, *, view: emotic.View = "image", reporter: Reporter = SILENT
) -> dict[str, FileCorpus]:
    """Read ``annots_arrs`` and ``img_arrs``; boxes are scaled to the arrays where sizes are given.

    Only persons with continuous values are kept. ``annot_arrs_extra_train.csv`` is no part of the published split.
    """
    folder = archive_folder(root)
    if folder is None:
        raise DataError(f"{root} has no annots_arrs/annot_arrs_train.csv")
    corpora = {}
    for split in emotic.SPLITS:
        table = folder / "annots_arrs" / f"annot_arrs_{split}.csv"
        if not table.is_file():
            continue
        column = "Arr_name" if view == "image" else "Crop_name"
        ids = _category_columns(table)
        rows = read_rows(table, ("Filename", column, *_VAD))
        builder = SplitBuilder(f"emotic-{view}/{split}", EMOTIC)
        seen = Counter[str]()  # persons of an image, in the order of the table
        for origin, row in tracked(rows, reporter, f"reading EMOTIC {split}"):
            name = row["Filename"].strip()
            where = f"{row.get('Folder', '').strip().strip('/')}/{name}".lstrip("/")
            ticks = numbers([row[c] for c in ids], len(ids), origin)
            valence, arousal, dominance = numbers([row[c] or math.nan for c in _VAD], 3, origin)
            seen[where] += 1
            person = emotic.Person(
                place=where,
                number=seen[where],
                box=(math.nan,) * 4,
                labels=tuple(sorted(k for k, v in zip(ids.values(), ticks, strict=True) if v > 0)),
                vad=(valence, arousal, dominance),
                gender=emotic.gender(row.get("Gender", ""), origin),
                age=emotic.age_group(row.get("Age", ""), origin),
            )
            picture = ImageArray(place(folder / "img_arrs", row[column], origin))
            box = _scaled(row, picture, origin) if view == "image" else None
            emotic.add_array(builder, person, picture, box)
        corpora[split] = emotic.finish(builder)
    if (folder / "annots_arrs" / "annot_arrs_extra_train.csv").is_file() and "train" in corpora:
        corpora["train"].skipped.remark("annot_arrs_extra_train.csv is not read", "train")
    return corpora


ARCHIVE_FORMAT = CorpusFormat(
    "emotic-archive",
    "EMOTIC as arrays: annots_arrs/annot_arrs_train.csv",
    tasks=lambda root, named: ("emotic",) if named or archive_folder(root) else (),
    load=lambda root, how: load_emotic_archive(root, view=how.view, reporter=how.reporter),
    views=("image", "person"),
    splits=emotic.SPLITS,
    annotation=tuple(f"*annot_arrs_{split}.csv" for split in emotic.SPLITS),
)
