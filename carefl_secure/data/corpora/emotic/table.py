"""EMOTIC as the public converter writes it: ``emotic_pre/{split}.csv``, one person per row.

Cells hold lists as Python literals. Optional stacks hold images (``{split}_context_arr.npy``,
``{split}_body_arr.npy``) and labels (``{split}_cat_arr.npy``). The converter drops persons whose
image cannot be read or who lack categories or continuous values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.corpora.emotic.person import (
    SPLITS,
    Person,
    PersonCounter,
    View,
    add_array,
    add_person,
    age_group,
    category_ids,
    finish,
    gender,
    image_root,
)
from carefl_secure.data.readers.images import ImageArray, open_array
from carefl_secure.data.readers.tables import header, literal, numbers, read_rows
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SILENT, Reporter, tracked

_COLUMNS = ("Folder", "Filename", "BBox", "Categorical_Labels", "Continuous_Labels")


def table_folder(root: Path) -> Path | None:
    """Return the folder of ``{split}.csv`` tables, where there is one."""
    for folder in (root / "emotic_pre", root):
        for split in SPLITS:
            path = folder / f"{split}.csv"
            if path.is_file() and "Categorical_Labels" in header(path):
                return folder
    return None


def _persons(path: Path) -> Iterator[Person]:
    counter = PersonCounter()
    for origin, row in read_rows(path, _COLUMNS):
        where = f"{row['Folder'].strip().strip('/')}/{row['Filename'].strip()}".replace("\\", "/")
        left, top, right, bottom = numbers(literal(row["BBox"], origin), 4, origin)
        # nan is no literal, yet converters write it
        cells = row["Continuous_Labels"].replace("nan", "None")
        vad = [math.nan if v is None else v for v in literal(cells, origin)]
        valence, arousal, dominance = numbers(vad, 3, origin)
        yield Person(
            place=where,
            number=counter.next(where),
            box=(left, top, right, bottom),
            labels=category_ids(map(str, literal(row["Categorical_Labels"], origin)), origin),
            vad=(valence, arousal, dominance),
            gender=gender(row.get("Gender", ""), origin),
            age=age_group(row.get("Age", ""), origin),
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


def _check_order(path: Path, persons: Sequence[Person]) -> None:
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


def load_emotic_csv(root: Path, *, view: View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read ``emotic_pre``: tables, with stacks of images or with the original images.

    Stacks are used where present. A stack has lost the size of the image, so its whole-image view has no boxes.
    ``root`` is the folder of the tables, or the one that holds ``emotic_pre``; only persons with continuous values are
    kept. `LabelError` is raised too where table and label stack disagree.
    """
    folder = table_folder(root)
    if folder is None:
        raise DataError(f"{root} has no train.csv with the column Categorical_Labels")
    images = image_root(root) or image_root(root.parent)
    corpora = {}
    for split in SPLITS:
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
                add_array(builder, person, ImageArray(stack, row), None)
            elif images is not None:
                add_person(builder, person, images, view)
        corpora[split] = finish(builder)
    return corpora


FORMAT = CorpusFormat(
    "emotic-table",
    "EMOTIC as emotic_pre: train.csv with the column Categorical_Labels",
    tasks=lambda root, named: ("emotic",) if named or table_folder(root) else (),
    load=lambda root, how: load_emotic_csv(root, view=how.view, reporter=how.reporter),
    views=("image", "person"),
    splits=SPLITS,
    annotation=tuple(f"*{split}{end}" for split in SPLITS for end in (".csv", "_cat_arr.npy")),
)
