"""NCAER-S: a selection of CAER's frames without videos shared between splits (arXiv 2111.04129).

``NCAERS/images/{train,val,test}/CLASS/*.jpg`` and next to it ``NCAERS/crop/`` with one text file
per image: four numbers of a face box, all zero where no face was found.
"""

from __future__ import annotations

from pathlib import Path

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.corpora.caers import SPLITS, Frame, View, is_class_folder, scan_classes, take_frames
from carefl_secure.data.label_spaces import CAERS
from carefl_secure.data.readers.tables import numbers, read_text
from carefl_secure.errors import DataError
from carefl_secure.progress import SILENT, Reporter


def ncaers_base(root: Path) -> Path | None:
    """Return the folder that holds NCAER-S's ``images``, where there is one."""
    for base in (root / "NCAERS", root):
        if any(is_class_folder(base / "images" / split) for split in (*SPLITS, ".")):
            return base
    return None


def has_marks(root: Path) -> bool:
    """Tell whether a folder is NCAER-S by its name, or by face boxes next to its images."""
    base = ncaers_base(root)
    return base is not None and ("NCAERS" in (base.name, base.resolve().name) or (base / "crop").is_dir())


def load_ncaers(root: Path, *, view: View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read NCAER-S: the splits that are there, or ``all`` without folders of splits.

    ``root`` is the folder ``NCAERS``, or the one that holds it.
    """
    base = ncaers_base(root)
    if base is None:
        raise DataError(f"{root} has no images/train/Anger and so on; unpack NCAER-S")
    splits = [split for split in SPLITS if (base / "images" / split).is_dir()]
    corpora = {}
    for split in splits or ["."]:
        name = "all" if split == "." else split
        frames = []
        for frame in scan_classes(base / "images" / split, "" if split == "." else f"{split}/"):
            file = base / "crop" / split / frame.path.parent.name / f"{frame.path.stem}.txt"
            box = None
            if file.is_file():
                left, top, right, bottom = numbers(read_text(file).replace(",", " ").split(), 4, str(file))
                box = (left, top, right, bottom) if any((left, top, right, bottom)) else None
            frames.append(Frame(frame.key, frame.path, frame.label, box))
        builder = SplitBuilder(f"ncaers-{view}/{name}", CAERS)
        if view == "image":
            none = [frame.key for frame in frames if frame.box is None]
            builder.skipped.remark("no face box", none[0] if none else "", len(none))
        corpora[name] = take_frames(builder, frames, view, {}, reporter)
    return corpora


FORMAT = CorpusFormat(
    "ncaers",
    "NCAER-S: a folder NCAERS, or images/train/Anger with crop/",
    tasks=lambda root, named: ("caers",) if named or has_marks(root) else (),
    load=lambda root, how: load_ncaers(root, view=how.view, reporter=how.reporter),
    views=("image", "face"),
    splits=SPLITS,
    annotation=("*crop/*.txt",),
)
