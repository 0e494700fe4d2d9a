"""CAER-S: frames of TV shows in one folder per class (Lee et al., arXiv 1908.05913).

``CAER-S/{train,test}/{Angry or Anger,Disgust,Fear,Happy,Neutral,Sad,Surprise}/NNNN.png``. The
release has neither boxes nor a validation split. Public lists ``{train,val,test}.txt`` with lines
``path,label,x1,y1,x2,y2`` add one face per image; where present, their rows are the records. The
images of ``val.txt`` lie in the folder ``test`` and are then not part of test.

File names do not identify clips. A table ``clips.csv`` with the columns ``path`` and ``clip``,
where present, makes the clip the record's subject, so that splits keep a clip together.

NCAER-S is a selection of CAER's frames without videos shared between splits (arXiv 2111.04129):
``NCAERS/images/{train,val,test}/CLASS/*.jpg`` and next to it ``NCAERS/crop/`` with one text file
per image: four numbers of a face box, all zero where no face was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.readers.file_kinds import image_suffixes
from carefl_secure.data.readers.images import ImageFile, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import numbers, read_lines, read_rows, read_text
from carefl_secure.data.records import CAERS, Moment, Record, Skipped
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SILENT, Reporter, tracked

View = str  # ``image`` or ``face``
SPLITS = ("train", "val", "test")
_NAMES = {label.lower(): k for k, label in enumerate(CAERS.labels)} | {"angry": 0}


@dataclass(frozen=True)
class Frame:
    """One frame before its image is looked at: key, file, class and, where known, the face."""

    key: str
    path: Path
    label: int
    box: Box | None


def class_id(name: str) -> int | None:
    """Return the id of a class folder, in either spelling, or ``None``."""
    return _NAMES.get(name.lower())


def is_class_folder(folder: Path) -> bool:
    """Tell whether most sub-folders have the name of a class, written with its capital."""
    names = [sub.name for sub in folder.iterdir() if sub.is_dir()] if folder.is_dir() else []
    known = (*CAERS.labels, "Angry")
    return bool(names) and sum(name in known for name in names) * 2 > len(names)


def has_marks(root: Path) -> bool:
    """Tell whether a folder is CAER-S by its name, or by its two spellings of one class."""
    base = caers_base(root)
    return base is not None and (
        "CAER-S" in (base.name, base.resolve().name)
        or ((base / "train" / "Angry").is_dir() and (base / "test" / "Anger").is_dir())
        or bool(list_files(root))
    )


def caers_base(root: Path) -> Path | None:
    """Return the folder that holds CAER-S's ``train`` or ``test``, where there is one."""
    for base in (root / "CAER-S", root):
        if any(is_class_folder(base / split) for split in ("train", "test")):
            return base
    return None


def list_files(root: Path) -> dict[str, Path]:
    """Return the annotation lists by split; `DataError` if they lie in more than one place."""
    places = [root, root / "CAERS-Annotation", root / "CAER-S"]
    found = [
        {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
        for folder in places
    ]
    several = [lists for lists in found if lists]
    if len(several) > 1:
        raise DataError(
            f"{root} has annotation lists in {len(several)} folders; keep train.txt, val.txt and "
            "test.txt of one making"
        )
    return several[0] if several else {}


def scan_classes(folder: Path, prefix: str) -> list[Frame]:
    """Return the images of all class folders, sorted, with keys after ``prefix``; refuse a folder that is no class."""
    frames = []
    for sub in sorted(sub for sub in folder.iterdir() if sub.is_dir()) if folder.is_dir() else []:
        label = class_id(sub.name)
        if label is None:
            raise LabelError(f"{sub} is not a class of CAER-S; known are Angry and {', '.join(CAERS.labels)}")
        for path in sorted(sub.iterdir()):
            if path.suffix.lower() in image_suffixes():
                frames.append(Frame(f"{prefix}{sub.name}/{path.name}", path, label, None))
    return frames


def _on_disk(base: Path, key: str, origin: str) -> tuple[str, Path]:
    """Return the file of a listed path; ``Angry`` and ``Anger`` stand for each other."""
    path = place(base, key, origin)
    head, folder, name = path.relative_to(base).parts
    for spelling in (folder, "Anger", "Angry"):
        if class_id(spelling) == class_id(folder) and (base / head / spelling / name).is_file():
            return f"{head}/{spelling}/{name}", base / head / spelling / name
    return f"{head}/{folder}/{name}", path


def _read_list(base: Path, split: str, listing: Path, skipped: Skipped) -> list[Frame]:
    """Read ``path,label,x1,y1,x2,y2``; a path starts at CAER-S, or at the split's folder."""
    frames, seen = [], set[str]()
    for origin, line in read_lines(listing):
        cells = line.split(",")
        if len(cells) != 6:
            raise DataError(f"{origin} has {len(cells)} fields where path,label,x1,y1,x2,y2 belong")
        parts = cells[0].strip().replace("\\", "/").split("/")
        if parts[0] not in ("train", "test"):
            parts = ["train" if split == "train" else "test", *parts]
        if len(parts) != 3:
            raise DataError(f"{origin}: the path {cells[0]!r} is not [split/]CLASS/IMAGE")
        key, path = _on_disk(base, "/".join(parts), origin)
        label, left, top, right, bottom = numbers(cells[1:], 5, origin)
        if label not in range(len(CAERS.labels)):
            raise LabelError(f"{origin}: the label {cells[1]} is not one of 0 to 6")
        folder = class_id(parts[1])
        if folder is None:
            raise LabelError(f"{origin}: {parts[1]!r} is not a class of CAER-S")
        if folder != label:
            skipped.drop("label in the list differs from the folder", key)
        elif key in seen:
            skipped.drop("listed twice", key)
        else:
            seen.add(key)
            frames.append(Frame(key, path, folder, (left, top, right, bottom)))
    return frames


def _clips(root: Path, base: Path) -> Mapping[str, str]:
    for path in (root / "clips.csv", base / "clips.csv"):
        if path.is_file():
            rows = read_rows(path, ("path", "clip"))
            return {row["path"].strip().removeprefix("CAER-S/"): row["clip"] for _, row in rows}
    return {}


def take_frames(
    builder: SplitBuilder, frames: list[Frame], view: View, clips: Mapping[str, str], reporter: Reporter
) -> FileCorpus:
    """Take frames into a split: drop what is missing or has no face, cut boxes to the image."""
    for frame in tracked(frames, reporter, f"reading {builder.name}"):
        box = frame.box
        if view == "face" and box is None:
            builder.skipped.drop("no face box", frame.key)
            continue
        if box is not None:
            size = builder.size(frame.path, frame.key)
            box = size and builder.fitted(box, size, frame.key)
            if box is None:
                continue
        elif not builder.usable(ImageFile(frame.path), frame.key):
            continue
        whole, clip = view == "image", clips.get(frame.key)
        moment = Moment(clip, int("".join(filter(str.isdigit, frame.path.stem)) or 0)) if clip else None
        builder.add(
            Record(frame.key, (frame.label,), clip, {}, box if whole else None, moment),
            ImageFile(frame.path, None if whole else box),
        )
    return builder.corpus("check that the images were unpacked and the lists belong to them", "video")


def load_caers(root: Path, *, view: View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read CAER-S as ``train`` and ``test``, and as ``val`` where there is a ``val.txt``.

    ``root`` is the folder ``CAER-S``, or the one that holds it and perhaps the lists. View
    ``image`` is the whole frame, with a box where there is a list; ``face`` is the part inside it.
    """
    base = caers_base(root)
    if base is None:
        raise DataError(f"{root} has no CAER-S/train/Angry or CAER-S/test/Anger; unpack CAER-S")
    lists, clips = list_files(root), _clips(root, base)
    disk = {split: scan_classes(base / split, f"{split}/") for split in ("train", "test")}
    taken: dict[str, set[str]] = {"train": set(), "test": set()}
    corpora = {}
    for split in SPLITS:
        builder = SplitBuilder(f"caers-{view}/{split}", CAERS)
        frames = _read_list(base, split, lists[split], builder.skipped) if split in lists else disk.get(split, [])
        if not frames and split not in lists:
            continue
        kept = []
        for frame in frames:
            owner = taken[frame.key.split("/")[0]]
            if frame.key not in owner:
                owner.add(frame.key)
                kept.append(frame)
            elif split in lists:
                builder.skipped.drop("listed in an earlier split too", frame.key)
        if split in lists:
            builder.stated["rows"] = len(kept) + builder.skipped.total
        corpora[split] = take_frames(builder, kept, view, clips, reporter)
    return corpora


FORMAT = CorpusFormat(
    "caers",
    "CAER-S: a folder CAER-S, or train/Angry with test/Anger",
    tasks=lambda root, named: ("caers",) if named or has_marks(root) else (),
    load=lambda root, how: load_caers(root, view=how.view, reporter=how.reporter),
    views=("image", "face"),
    splits=("train", "test"),
    annotation=("*train.txt", "*val.txt", "*test.txt", "*clips.csv"),
)


def ncaers_base(root: Path) -> Path | None:
    """Return the folder that holds NCAER-S's ``images``, where there is one."""
    for base in (root / "NCAERS", root):
        if any(is_class_folder(base / "images" / split) for split in (*SPLITS, ".")):
            return base
    return None


def has_ncaers_marks(root: Path) -> bool:
    """Tell whether a folder is NCAER-S by its name, or by face boxes next to its images."""
    base = ncaers_base(root)
    return base is not None and ("NCAERS" in (base.name, base.resolve().name) or (base / "crop").is_dir())


def load_ncaers(root: Path, *, view: View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read NCAER-S: the splits that are there, or ``all``; ``root`` is the folder ``NCAERS``, or holds it."""
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


NCAERS_FORMAT = CorpusFormat(
    "ncaers",
    "NCAER-S: a folder NCAERS, or images/train/Anger with crop/",
    tasks=lambda root, named: ("caers",) if named or has_ncaers_marks(root) else (),
    load=lambda root, how: load_ncaers(root, view=how.view, reporter=how.reporter),
    views=("image", "face"),
    splits=SPLITS,
    annotation=("*crop/*.txt",),
)
