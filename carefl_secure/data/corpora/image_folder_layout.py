"""Where splits (named as in ``datasets``), classes and metadata of an image folder are; contradictions are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from carefl_secure.data.readers.inventory import Inventory
from carefl_secure.data.readers.metadata import Row, read_metadata
from carefl_secure.data.records import PUBLISHED_SPACES
from carefl_secure.errors import DataError

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of split folders, in any case, and the split that each means."""

_NEUTRAL = frozenset({"data", "dataset", "image", "images", "img", "imgs", "set", "split"})
_MOST_STRAY = 0.05
_WORDS = {word.lower() for space in PUBLISHED_SPACES.values() for word in space.labels}


@dataclass(frozen=True)
class Part:
    """The rows of one split; ``Row.file_name`` is relative to the root of the corpus."""

    name: str
    rows: Sequence[Row]


def split_name(folder: str) -> str | None:
    """Return the split that a folder's name means, such as ``Train`` or ``test-images``."""
    words = [word for word in re.split(r"[-_. ]+", folder.lower()) if word not in _NEUTRAL]
    return SPLIT_NAMES.get(words[0]) if len(words) == 1 else None


def _prefix(images: Sequence[str]) -> str:
    """Return the folders that hold everything and are no split and no class: a wrapper's."""
    prefix = ""
    while True:
        below = [image[len(prefix) :].split("/") for image in images]
        heads = {parts[0] for parts in below if len(parts) > 1}
        if len(heads) != 1 or any(len(parts) < 3 for parts in below):
            return prefix
        (head,) = heads
        if split_name(head):
            return prefix
        prefix += f"{head}/"


def _split_folders(inventory: Inventory, prefix: str) -> dict[str, str]:
    used = [*inventory.images, *inventory.metadata]
    heads = sorted({p[len(prefix) :].split("/")[0] for p in used if p[len(prefix) :].count("/")})
    found: dict[str, str] = {}
    for head in heads:
        split = split_name(head)
        if split is not None and split in found:
            raise DataError(
                f"{inventory.root} has two folders for the split {split}: {found[split]} and {head}; keep one of them"
            )
        if split is not None:
            found[split] = head
    others = [head for head in heads if head not in found.values()]
    if found and others:
        raise DataError(
            f"{inventory.root} has the split folder{'s' if len(found) > 1 else ''} {', '.join(found.values())} and "
            f"other folders with images: {', '.join(others[:3])}; move the others into a split, or rename the split "
            "folders where they are classes"
        )
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _described(inventory: Inventory) -> dict[str, list[Row]]:
    """Return the rows of all metadata files by folder, with names relative to the root."""
    found: dict[str, list[Row]] = {}
    owner: dict[str, str] = {}
    # A Mac writes names in Unicode form D, other systems in form C.
    forms = {normalize("NFC", image): image for image in inventory.images}
    exact = frozenset(inventory.images)
    for name in inventory.metadata:
        folder = name.rpartition("/")[0]
        if folder in found:
            raise DataError(f"{inventory.root / folder} holds metadata.jsonl and metadata.csv; keep one of them")
        rows = []
        for row in read_metadata(inventory.root / name, name):
            image = str(PurePosixPath(folder) / row.file_name)
            image = image if image in exact else forms.get(normalize("NFC", image), image)
            rows.append(replace(row, file_name=image))
        for image in {row.file_name for row in rows}:
            if owner.setdefault(image, name) != name:
                raise DataError(f"{owner[image]} and {name} both describe {image}; remove it from one of them")
        found[folder] = rows
    return found


def _contradicts(folder: str, rows: Sequence[Row], words: set[str]) -> Row | None:
    """Return a row whose label differs from a folder that is itself the name of a label."""
    name = PurePosixPath(folder).name.lower()
    labels = {label.lower() for row in rows for label in row.labels or ()}
    constant = len(labels) == 1 and len(rows) > 1
    if not (name in words or name in _WORDS or constant) or split_name(name) or name in _NEUTRAL:
        return None
    return next((row for row in rows if row.labels and name not in map(str.lower, row.labels)), None)


def _check_nested(root: Path, found: Mapping[str, Sequence[Row]], by_client: bool) -> None:
    words = {label.lower() for rows in found.values() for row in rows for label in row.labels or ()}
    for folder, rows in found.items():
        client = by_client and len([p for p in folder.split("/") if split_name(p) is None]) == 1
        row = None if client or not folder else _contradicts(folder, rows, words)
        if row is not None:
            raise DataError(
                f"{root / row.origin} labels {row.file_name} {', '.join(row.labels or ())}, and its folder is called "
                f"{PurePosixPath(folder).name}: which of the two is the label is not clear; merge the metadata files "
                f"into {root / 'metadata.jsonl'}, or remove them where the folders are the labels"
            )


def _classes(inventory: Inventory, images: Sequence[str], prefix: str, by_client: bool) -> list[Row]:
    """Return one row per image in a class folder; images outside one are counted, or refused."""
    rows, stray = [], []
    for image in images:
        parts = image[len(prefix) :].split("/")
        if len(parts) == 1:
            stray.append(image)
            continue
        if by_client and len(parts) == 3:
            parts = parts[1:]
        if len(parts) > 2 or (by_client and image.count("/") == prefix.count("/") + 1):
            raise DataError(
                f"the image {inventory.root / image} does not stand in a class folder directly "
                f"below {inventory.root / prefix}; without a metadata file the layout is "
                "LABEL/IMAGE, or SPLIT/LABEL/IMAGE with folders such as train and test; with "
                "data.partition=folder there is a folder for each client above the labels"
            )
        label = normalize("NFC", parts[0])
        rows.append(Row(image, (label,), False, None, {}, None, image))
    if len(stray) > max(1, _MOST_STRAY * len(images)) or (stray and not rows):
        raise DataError(
            f"{len(stray)} of {len(images)} images, such as {inventory.root / stray[0]}, do not "
            "stand in a class folder and no metadata file is there to label them; put them into "
            "one folder per label, or add a metadata.jsonl"
        )
    named = {label for row in rows for label in row.labels or ()}
    if len(named) == 1 and {*map(str.lower, named)} <= _NEUTRAL:
        raise DataError(
            f"the only class folder below {inventory.root / prefix} is called {named.pop()}, which is no label; the "
            "layout is LABEL/IMAGE, or SPLIT/LABEL/IMAGE; or add a metadata.jsonl with file_name and label"
        )
    inventory.left.update(dict.fromkeys(stray, "image outside the class folders"))
    return rows


def _by_column(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Cut rows by a column ``split``, where it names splits; then every row must name one."""
    names = [_stated_split(row) for row in rows]
    if not any(names):
        _refuse_unread_splits(rows)
        return {}
    for row, name in zip(rows, names, strict=True):
        if name is None:
            raise DataError(
                f"{row.origin} names the split {row.attributes.get('split')!r} where other rows "
                "name train, val or test; name one of them in every row"
            )
    return {
        split: [row for row, name in zip(rows, names, strict=True) if name == split]
        for split in ("train", "val", "test")
        if split in names
    }


def _refuse_unread_splits(rows: Sequence[Row]) -> None:
    """Refuse a column ``split`` of other words, and another column that names splits: test records would train."""
    columns: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.attributes.items():
            columns.setdefault(key, set()).add(value)
    for key, values in columns.items():
        shown = ", ".join(sorted(values)[:3])
        if key == "split" and len(values) > 1:
            raise DataError(f"the column split holds {shown}; write train, val or test, or give it another name")
        if len(values) > 1 and len(values) < 5 and None not in map(split_name, values):
            raise DataError(f"the column {key} holds {shown} and is not read as splits; call it split, or remove it")


def _stated_split(row: Row) -> str | None:
    return split_name(row.attributes.get("split", ""))


def read_layout(inventory: Inventory, by_client: bool = False) -> list[Part]:
    """Return the rows of every split; one part called ``all`` where there are no splits.

    Images that no metadata names, although it could, are counted as skipped. With ``by_client`` the first folder below
    a split is a client, and becomes the attribute ``folder``.
    """
    root, images = inventory.root, inventory.images
    described = _described(inventory)
    _check_nested(root, described, by_client)
    prefix = _prefix(images)
    folders = _split_folders(inventory, prefix)
    covered = tuple(f"{folder}/" if folder else "" for folder in described)
    if not described:
        inventory.refuse_unread_labels()
    elif missing := [i for i in images if not i.startswith(covered) and i[len(prefix) :].count("/")]:
        raise DataError(
            f"{root / missing[0]} has no metadata file in its folder or above it, and other "
            f"folders have one ({root / next(iter(described))}); describe all images, or none"
        )
    rows = [row for part in described.values() for row in part]
    parts = {} if folders else _by_column(rows)
    if parts and by_client:
        parts = {name: [_at_client(row, prefix, root) for row in part] for name, part in parts.items()}
    if not parts:
        for split, folder in (folders or {"all": ""}).items():
            below = f"{prefix}{folder}/" if folder else prefix
            inside = [image for image in images if image.startswith(below)]
            if not described:
                parts[split] = _classes(inventory, inside, below, by_client)
            else:
                parts[split] = [row for row in rows if row.file_name.startswith(below)]
                _check_split(parts[split], split, folder)
            if by_client:
                parts[split] = [_at_client(row, below, root) for row in parts[split]]
        for image in images:
            if folders and "/" not in image[len(prefix) :]:
                inventory.left[image] = "image outside the split folders"
    if described:
        for image in images:
            inventory.left.setdefault(image, "image that the metadata does not name")
    return [Part(name, part) for name, part in parts.items()]


def _check_split(rows: Sequence[Row], split: str, folder: str) -> None:
    """Refuse a row that names another split than the folder of its image."""
    for row in rows if folder else ():
        if _stated_split(row) not in (None, split):
            raise DataError(
                f"{row.origin} names the split {row.attributes['split']}, and {row.file_name} is "
                f"in the folder {folder}; correct one of them"
            )


def _at_client(row: Row, below: str, root: Path) -> Row:
    client, slash, _ = row.file_name[len(below) :].partition("/")
    if not slash:
        raise DataError(
            f"{root / row.file_name} stands in no client's folder; data.partition=folder needs one "
            "folder for each client"
        )
    return replace(row, attributes={**row.attributes, "folder": client})
