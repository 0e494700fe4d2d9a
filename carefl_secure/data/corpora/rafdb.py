"""RAF-DB, basic and compound: faces with a list of labels (Li, Deng and Du, CVPR 2017).

Below ``basic/`` and ``compound/`` alike::

    EmoLabel/list_patition_label.txt                    "train_00001.jpg 5", labels from 1
    Image/aligned/train_00001_aligned.jpg               100 x 100, eyes and mouth in place
    Image/original/train_00001.jpg                      as found, of any size
    Annotation/manual/train_00001_manu_attri.txt        5 landmarks, gender, race, age
    Annotation/boundingbox/train_00001_boundingbox.txt  xmin ymin xmax ymax

The list is spelled *patition* on disk and in places *partition*. The prefix of the name is the
split; there is no official validation split. Boxes and landmarks belong to the original image. Keys
start with the subset, since both use the same names for different images. Some copies have
``train/1`` to ``train/7`` instead of the list. RAF-CE, whose labels have another order, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, ReadOptions, SplitBuilder
from carefl_secure.data.corpora.rafdb_attributes import read_attributes, read_box
from carefl_secure.data.readers.face_alignment import align
from carefl_secure.data.readers.file_kinds import image_suffixes
from carefl_secure.data.readers.images import ImageFile, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import read_lines
from carefl_secure.data.records import BASIC, COMPOUND, LabelSpace, Record
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SILENT, Reporter, tracked

Subset = Literal["basic", "compound"]
_SUBSETS: tuple[Subset, ...] = ("basic", "compound")
_PUBLISHED_NAME = re.compile(r"(train|test)_\d+(_aligned)?\.\w+", re.IGNORECASE)
_SIDE = 100  # of the published aligned images
_SPACES: Mapping[str, LabelSpace] = {"basic": BASIC, "compound": COMPOUND}
_NONE = [[math.nan, math.nan]] * 5


def label_list(folder: Path) -> Path | None:
    """Return the list of labels of one subset, in either spelling, where there is one."""
    for name in ("list_patition_label.txt", "list_partition_label.txt"):
        if (folder / "EmoLabel" / name).is_file():
            return folder / "EmoLabel" / name
    return None


def subset_root(root: Path, subset: Subset) -> Path | None:
    """Return the folder of one subset: below ``root``, or ``root`` where that is it."""
    for folder in (root / subset, root / "RAF-DB" / subset):
        if label_list(folder):
            return folder
    if label_list(root) and _subset_of(root) == subset:
        return root
    return None


def _subset_of(root: Path) -> Subset:
    """Tell which subset a lone list is of: by the folder's name, or else by its highest label."""
    if root.name in _SUBSETS:
        return "compound" if root.name == "compound" else "basic"
    listing = label_list(root)
    highest = max((label for _, label in _read_list(listing, 99)), default=0) if listing else 0
    return "compound" if highest > len(BASIC.labels) else "basic"


def numbered_subset(root: Path) -> Subset | None:
    """Tell which subset a copy with folders ``train/1`` and so on holds, or ``None``."""
    names = {
        sub.name
        for split in ("train", "test")
        if (root / split).is_dir()
        for sub in (root / split).iterdir()
        if sub.is_dir()
    }
    if not names or not all(name.isdecimal() for name in names):
        return None
    highest = max(map(int, names))
    if min(map(int, names)) < 1 or highest > len(COMPOUND.labels):
        return None
    return "compound" if highest > len(BASIC.labels) else "basic"


def _has_names(root: Path) -> bool:
    """Tell whether most images in numbered folders have RAF-DB's own names."""
    names = [
        path.name
        for split in ("train", "test")
        for path in (root / split).glob("*/*")
        if path.suffix.lower() in image_suffixes()
    ]
    return sum(bool(_PUBLISHED_NAME.fullmatch(name)) for name in names) * 2 > len(names)


def refuse_rafce(root: Path) -> None:
    """Refuse RAF-CE, whose labels are in another order, with a `DataError`."""
    for folder in (root, root / "EmoLabel"):
        if (folder / "RAFCE_emolabel.txt").is_file():
            raise DataError(
                f"{root} is RAF-CE, another dataset of 14 classes in another order, not the "
                "compound subset of RAF-DB; point at RAF-DB"
            )


def _read_list(path: Path, labels: int) -> list[tuple[str, int]]:
    """Read ``name label``; labels are returned as they stand, from 1."""
    rows, seen = [], set[str]()
    for origin, line in read_lines(path):
        cells = line.split()
        if len(cells) != 2 or not cells[1].isdecimal():
            raise DataError(f"{origin}: {line!r} is not an image name and a label; correct it")
        name, label = cells[0], int(cells[1])
        if not 1 <= label <= labels:
            raise LabelError(
                f"{origin}: the label {label} is not one of 1 to {labels}; RAF-DB counts from 1 "
                "(a list with 0 or with more labels is of another dataset, such as RAF-CE)"
            )
        if name in seen:
            raise DataError(f"{origin}: {name} stands in the list twice; remove one line")
        if name.split("_")[0] not in ("train", "test"):
            raise DataError(f"{origin}: {name!r} starts with neither train_ nor test_")
        seen.add(name)
        rows.append((name, label))
    return rows


def _pick_view(folder: Path, view: str) -> str:
    if view == "auto":
        view = "aligned" if (folder / "Image" / "aligned").is_dir() else "original"
    images = folder / "Image" / _kind(view)
    if not images.is_dir():
        zipped = images.with_suffix(".zip")
        hint = f"unpack {zipped}" if zipped.is_file() else f"put the {images.name} images there"
        raise DataError(f"{images} is missing; {hint}")
    return view


def _kind(view: str) -> str:
    return "aligned" if view == "aligned" else "original"


def load_rafdb(
    root: Path, subset: Subset, *, view: str = "auto", reporter: Reporter = SILENT
) -> dict[str, FileCorpus]:
    """Read one subset of RAF-DB: ``train`` and ``test``.

    ``root`` has ``basic`` and ``compound``, is one of these, or a copy with numbered classes. ``view`` is ``aligned``,
    ``original``, ``realigned`` or ``auto``, which takes the aligned images where present. ``realigned`` cuts faces
    from the original ones by their manual landmarks, leaving out and counting those whose landmarks are unusable.
    Attributes are ``gender``, ``race`` and ``age_group``, all as perceived by annotators. Only the original view has
    boxes, and five points in ``extras["landmarks"]``.
    """
    refuse_rafce(root)
    folder = subset_root(root, subset)
    if folder is None:
        if numbered_subset(root) == subset:
            return _load_numbered(root, subset, reporter)
        raise DataError(
            f"{root} has no {subset}/EmoLabel/list_patition_label.txt; point at the folder that "
            f"holds RAF-DB's {subset}"
        )
    listing = label_list(folder)
    rows = _read_list(listing, len(_SPACES[subset].labels)) if listing else []
    chosen = _pick_view(folder, view)
    corpora = {}
    for split in ("train", "test"):
        name = f"rafdb-{subset}-{chosen}/{split}"
        builder = SplitBuilder(name, _SPACES[subset])
        mine = [row for row in rows if row[0].startswith(f"{split}_")]
        for image, label in tracked(mine, reporter, f"reading RAF-DB {subset} {split}"):
            _add(builder, folder, subset, chosen, image, label - 1)
        builder.stated["rows"] = len(mine)
        if mine:
            corpora[split] = builder.corpus(f"check the images in {folder / 'Image'}")
            if chosen == "realigned":
                for reason, count in builder.skipped.dropped.items():
                    reporter.note(f"{name}: left out {count} x {reason}")
    if not corpora:
        raise DataError(f"{listing} is empty; fetch it again")
    return corpora


def _add(builder: SplitBuilder, folder: Path, subset: str, view: str, image: str, label: int) -> None:
    key, stem = f"{subset}/{image}", Path(image).stem
    path = place(folder / "Image" / _kind(view), image, key)
    if view == "aligned":
        path = path.with_name(f"{path.stem}_aligned{path.suffix}")
    notes = read_attributes(folder / "Annotation" / "manual" / f"{stem}_manu_attri.txt")
    record = Record(key, (label,), None, notes.attributes)
    if view == "realigned":
        size = builder.size(path, key)
        if size is not None:
            face = align(path, notes.landmarks or _NONE, size, _SIDE)
            if isinstance(face, str):
                builder.skipped.drop(face, key)
            else:
                builder.add(record, face)
        return
    box: Box | None = None
    if view == "original":
        box = read_box(folder / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt")
        size = builder.size(path, key)
        if size is None:
            return
        if box is None:
            builder.skipped.remark("no usable bounding box", key)
        else:
            box = builder.fitted(box, size, key)
            if box is None:
                return
    elif not builder.usable(ImageFile(path), key):
        return
    if notes.fault:
        builder.skipped.remark(notes.fault, key)
    extras = {"landmarks": notes.landmarks or _NONE} if view == "original" else {}
    builder.add(replace(record, box=box), ImageFile(path), **extras)


def _load_numbered(root: Path, subset: Subset, reporter: Reporter) -> dict[str, FileCorpus]:
    """Read ``train/1`` and so on; folders are taken by number, so that 10 is not after 1."""
    corpora = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            continue
        builder = SplitBuilder(f"rafdb-{subset}-folders/{split}", _SPACES[subset])
        folders = sorted((f for f in (root / split).iterdir() if f.is_dir()), key=lambda f: int(f.name))
        for folder in tracked(folders, reporter, f"reading RAF-DB {subset} {split}"):
            for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in image_suffixes()):
                key = f"{subset}/{split}/{folder.name}/{path.name}"
                if builder.usable(ImageFile(path), key):
                    builder.add(Record(key, (int(folder.name) - 1,)), ImageFile(path))
        corpora[split] = builder.corpus("put the images into the numbered folders")
    return corpora


def _read(root: Path, how: ReadOptions) -> Mapping[str, FileCorpus]:
    subset: Subset = "compound" if how.task == "compound" else "basic"
    return load_rafdb(root, subset, view=how.view, reporter=how.reporter)


FORMAT = CorpusFormat(
    "rafdb",
    "RAF-DB: basic/EmoLabel/list_patition_label.txt, or compound/EmoLabel/...",
    tasks=lambda root, named: tuple(one for one in _SUBSETS if subset_root(root, one)) or (_SUBSETS if named else ()),
    load=_read,
    views=("aligned", "original", "realigned"),
    splits=("train", "test"),
    annotation=("*list_pa*tition_label.txt", "*_manu_attri.txt", "*_boundingbox.txt"),
)
FOLDERS_FORMAT = CorpusFormat(
    "rafdb-folders",
    "RAF-DB in folders: train/1/train_00001_aligned.jpg and so on",
    tasks=lambda root, named: (subset,) if (subset := numbered_subset(root)) and (named or _has_names(root)) else (),
    load=_read,
    splits=("train", "test"),
    annotation=("nothing but folders",),
)
