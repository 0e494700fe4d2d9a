"""Image folders in the Hugging Face layout: a metadata file beside the images, or class folders.

With ``metadata.jsonl`` or ``metadata.csv`` every row is a record:

``file_name``
    Path of the image below the folder. Several rows may name one image, one per person in it.
``label`` or ``labels``
    One label word, or a list of them (in CSV separated by ``|``).
``subject``
    Who is shown; optional.
``box`` or ``bbox``
    The person, ``[left, top, right, bottom]`` in pixels of the upright image (a camera's note on
    how it was held is obeyed); optional.

Every other column with a plain value is an attribute. Without a metadata file each sub-folder is a
label and holds its images. Images that the metadata does not name are no part of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from carefl_secure.data.readers.images import BROKEN, MOST_PIXELS
from carefl_secure.data.readers.metadata import Row, read_metadata
from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import DataError, LabelError

__all__ = ["SUFFIXES", "FolderCorpus", "load_imagefolder"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What the file name of an image ends with, in class folders."""


@dataclass(frozen=True)
class FolderCorpus:
    """Records whose images are read from disk when asked for.

    Parameters
    ----------
    name : str
        Short name of the corpus.
    space : LabelSpace
        The label space of all records.
    records : sequence of Record
        The records, in the order of the metadata, or sorted by path in class folders.
    paths : sequence of Path
        The image of each record.
    """

    name: str
    space: LabelSpace
    records: Sequence[Record]
    paths: Sequence[Path]

    def image(self, index: int) -> Image.Image:
        """Return the RGB image of one record.

        Raises
        ------
        DataError
            If the file cannot be read to its end as an image.
        """
        return _decode(self.paths[index])


def _decode(path: Path) -> Image.Image:
    """Read the whole image: only that finds a file that was cut off."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"the image {path} has more than {MOST_PIXELS} pixels; make it smaller"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"the image {path} is missing; restore it or remove it from the metadata"
        ) from error
    except BROKEN as error:
        raise DataError(
            f"the image {path} cannot be read: {error}. Replace it, or remove it from the corpus."
        ) from error


def _read_classes(root: Path) -> list[Row]:
    rows = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES):
        parts = path.relative_to(root).parts
        if len(parts) != 2:
            raise DataError(
                f"the image {path} does not stand in a class folder directly below {root}; "
                "without a metadata file the layout is LABEL/IMAGE. Where the folder holds "
                "splits, point at one of them."
            )
        name = "/".join(parts)
        rows.append(Row(name, (parts[0],), False, None, {}, None, name))
    return rows


def _derive(rows: Sequence[Row], name: str, several: bool) -> LabelSpace:
    return LabelSpace(name, tuple(sorted({word for row in rows for word in row.labels})), several)


def _check_image(path: Path, row: Row) -> None:
    image = _decode(path)
    if row.box is not None:
        left, top, right, bottom = row.box
        if left < 0 or top < 0 or right > image.width or bottom > image.height:
            raise DataError(
                f"{row.origin}: the box {list(row.box)} does not lie inside the image of "
                f"{image.width} x {image.height} pixels; boxes are [left, top, right, bottom]"
            )


def load_imagefolder(
    path: Path, space: LabelSpace | None = None, *, name: str | None = None, check: bool = True
) -> FolderCorpus:
    """Read an image folder, refusing whatever is not as it should be.

    Parameters
    ----------
    path : Path
        The folder.
    space : LabelSpace, optional
        The label space; derived from the labels found, sorted, where it is not given.
    name : str, optional
        Name of the corpus; the folder's name where it is not given.
    check : bool
        Decode every image once, so that a broken one is found now and not in the last round.

    Returns
    -------
    FolderCorpus
        At least one record.

    Raises
    ------
    DataError
        If there are no images, or an image or row is missing, unreadable or malformed.
    LabelError
        If a label is not in ``space``.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; give the folder that holds the images")
    found = [p for p in (path / "metadata.jsonl", path / "metadata.csv") if p.is_file()]
    if len(found) > 1:
        raise DataError(f"{path} holds metadata.jsonl and metadata.csv; keep one of them")
    rows = read_metadata(found[0]) if found else _read_classes(path)
    if not rows:
        raise DataError(
            f"{path} holds no images; put them into one folder per label, or add a metadata.jsonl"
        )
    kinds = {row.several for row in rows}
    if len(kinds) > 1:
        raise DataError(f"{found[0]} uses 'label' in some rows and 'labels' in others; use one")
    name = name or path.resolve().name
    space = space or _derive(rows, name, kinds == {True})
    if not space.labels:
        raise LabelError(f"{path} holds no label at all; label at least one record")
    records, paths, seen = [], [], dict[str, int]()
    for row in rows:
        if not space.multi and len(row.labels) != 1:
            raise LabelError(
                f"{row.origin}: the label space {space.name!r} takes exactly one label, "
                f"not {len(row.labels)}"
            )
        image = path / row.file_name
        if not image.is_file():
            raise DataError(
                f"{row.origin} names {row.file_name!r}, which is not in {path}; "
                "add the file or remove the row"
            )
        if check:
            _check_image(image, row)
        seen[row.file_name] = count = seen.get(row.file_name, 0) + 1
        try:
            ids = tuple(sorted(space.index(word) for word in row.labels))
        except LabelError as error:
            raise LabelError(f"{row.origin}: {error}") from None
        records.append(
            Record(
                key=row.file_name if count == 1 else f"{row.file_name}#{count}",
                labels=ids,
                subject=row.subject,
                attributes=row.attributes,
                box=row.box,
            )
        )
        paths.append(image)
    return FolderCorpus(name, space, tuple(records), tuple(paths))
