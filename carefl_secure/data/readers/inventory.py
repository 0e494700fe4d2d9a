"""Every file below a data folder: an image, metadata, skipped for a reason, or refused.

Linked folders are followed, as torchvision and the ``datasets`` library do.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from carefl_secure.data.readers.file_kinds import (
    METADATA_NAMES,
    TABLES,
    how_to_convert,
    image_suffixes,
    made_by_a_tool,
    suffix_of,
)
from carefl_secure.data.skipped import Skipped
from carefl_secure.errors import DataError

__all__ = ["Inventory", "take_inventory"]

_MOST_READ = 1 << 20  # bytes of a text file that are searched for names of images


@dataclass(frozen=True)
class Inventory:
    """The files below a folder, as sorted paths relative to it.

    ``tables`` are text files that may hold labels; ``skipped`` counts every other file, by reason.
    """

    root: Path
    images: Sequence[str]
    metadata: Sequence[str]
    tables: Sequence[str]
    skipped: Skipped = field(compare=False)

    def refuse_unread_labels(self) -> None:
        """Refuse text that names images: it may hold labels, and would not be read."""
        names = {PurePosixPath(image).name for image in self.images}
        stems = {str(PurePosixPath(image).with_suffix("")) for image in self.images}
        for table in self.tables:
            if str(PurePosixPath(table).with_suffix("")) in stems:
                self.skipped.drop("text about one image, not read", table)
                continue
            named = next((word for word in _words(self.root / table) if word in names), None)
            if named is not None:
                raise DataError(
                    f"{self.root / table} names the image {named} and may hold labels, and without "
                    "a metadata file it would not be read; turn it into metadata.csv with the "
                    "columns file_name and label, or move it out of the folder"
                )
            self.skipped.drop("not an image", table)


def _words(path: Path) -> Sequence[str]:
    """Return what may be file names in the head of a text file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_READ).decode("utf-8", "replace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; make it readable or move it away") from error
    for sign in "\"'<>,;|\t=:[]{}()":
        text = text.replace(sign, "\n")
    return [word.strip().replace("\\", "/").rsplit("/", 1)[-1] for word in text.split("\n")] + [
        word.replace("\\", "/").rsplit("/", 1)[-1] for word in text.split()
    ]


class _Walk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[str] = []
        self.metadata: list[str] = []
        self.tables: list[str] = []
        self.archives: list[str] = []
        self.skipped = Skipped()

    def folder(self, prefix: str, above: frozenset[str]) -> None:
        where = self.root / prefix
        real = os.path.realpath(where)
        if real in above:
            raise DataError(f"the linked folder {where} leads back into itself; remove the link")
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"cannot list the folder {where}: {error.strerror}; make it readable or remove it"
            ) from error
        for entry in entries:
            name = f"{prefix}{entry.name}"
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"the name of {name!r} below {self.root} is not UTF-8; rename it"
                ) from None
            if entry.is_symlink() and not os.path.exists(entry.path):
                if not made_by_a_tool(entry.name, folder=True):
                    raise DataError(
                        f"{self.root / name} is a link to {os.readlink(entry.path)}, which is not "
                        "there; restore what it leads to, or remove the link"
                    )
                self.skipped.drop("a file that a tool made", name)
            elif entry.is_dir():
                if made_by_a_tool(entry.name, folder=True):
                    self.tool_folder(name)
                else:
                    self.folder(f"{name}/", above | {real})
            else:
                self.file(entry, name)

    def tool_folder(self, name: str) -> None:
        for _, _, files in os.walk(self.root / name):
            for file in files:
                self.skipped.drop("in a folder that a tool made", file)

    def file(self, entry: os.DirEntry[str], name: str) -> None:
        lower = entry.name.lower()
        if made_by_a_tool(entry.name, folder=False):
            self.skipped.drop("a file that a tool made", name)
            return
        if not entry.is_file():
            self.skipped.drop("neither a file nor a folder", name)
        elif entry.name in METADATA_NAMES:
            self.metadata.append(name)
        elif lower.rsplit(".", 1)[0] == "metadata" and "." in lower:
            fix = how_to_convert(str(self.root / name), str((self.root / name).parent))
            right = next((one for one in METADATA_NAMES if one == lower), None)
            raise DataError(
                f"{self.root / name} "
                + (fix or f"is not read under this name; rename it to {right or METADATA_NAMES[0]}")
            )
        elif suffix_of(lower) in image_suffixes():
            self.images.append(name)
        elif suffix_of(lower) in TABLES:
            self.tables.append(name)
        elif how_to_convert(name, "") is None:
            self.skipped.drop("not an image", name)
        else:
            self.archives.append(name)

    def refuse_archives(self) -> None:
        tails = {
            "/".join(parts[at:])
            for parts in (image.split("/") for image in self.images)
            for at in range(len(parts))
        }
        for name in self.archives:
            path = self.root / name
            inside = _listed(path)
            if not inside or not tails.issuperset(inside):
                raise DataError(f"{path} {how_to_convert(str(path), str(path.parent))}")
            self.skipped.drop("an archive whose images are all unpacked", name)


def _listed(path: Path) -> list[str]:
    """Return the names of the images in a zip or tar archive; none where it cannot be listed."""
    try:
        if suffix_of(path.name) == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        elif suffix_of(path.name) in (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"):
            with tarfile.open(path) as packed:
                names = packed.getnames()
        else:
            return []
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError):
        return []
    return [
        name
        for name in names
        if suffix_of(name) in image_suffixes()
        and not any(made_by_a_tool(part, folder=True) for part in name.split("/"))
    ]


def take_inventory(root: Path) -> Inventory:
    """List every file below a folder.

    Raises
    ------
    DataError
        The folder cannot be listed, a link leads nowhere or in a circle, or a file is of a kind
        that is not read and may hold images or labels; the text says how to convert it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the images")
    walk = _Walk(root)
    walk.folder("", frozenset())
    walk.refuse_archives()
    return Inventory(root, walk.images, walk.metadata, walk.tables, walk.skipped)
