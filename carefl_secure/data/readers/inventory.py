"""Every file below a data folder, links followed: an image, metadata, skipped for a reason, or refused."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Container, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from carefl_secure.data.readers import file_kinds
from carefl_secure.data.records import Skipped
from carefl_secure.errors import DataError

NO_IMAGE = "not an image"
_NO_SUFFIX = "an image whose name has no image suffix"
_BY_A_TOOL = "a file that a tool made"
_IN_A_TOOL = "in a folder that a tool made"
_YOLO = re.compile(rb"\d+([ \t]+-?\d*\.?\d+([eE]-?\d+)?){4,}[ \t\r]*(\n|$)")  # class and box, or class and polygon
_MOST_READ = 1 << 20  # bytes of a text file that are searched for names of images


class Inventory:
    """The files below a folder, as sorted paths relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[str] = []
        self.metadata: list[str] = []
        self.tables: list[str] = []  # text files that may hold labels
        self.archives: list[str] = []
        self.misnamed: list[str] = []
        self.left: dict[str, str] = {}  # every other file, with the reason why it is no record
        self.skipped = Skipped()  # what `count` was told is not used
        self._seen: dict[str, Path] = {}
        self._folder("", frozenset())

    def refuse_unread_labels(self) -> None:
        """Refuse a table that names one image, or other text that names half of them: it may hold labels."""
        names = {PurePosixPath(image).name for image in self.images}
        stems = {PurePosixPath(image).stem for image in self.images}
        whole = {str(PurePosixPath(image).with_suffix("")) for image in self.images}
        for text in (*self.tables, *(name for name, why in self.left.items() if why == NO_IMAGE)):
            if PurePosixPath(text).stem in stems and _YOLO.match(_head(self.root / text)):
                raise DataError(
                    f"{self.root / text} is in YOLO format, which is not read; add a metadata.jsonl with file_name, "
                    "labels and, for one person of several, box, or put the images into one folder per label"
                )
            if str(PurePosixPath(text).with_suffix("")) in whole:
                self.left[text] = "text about one image, not read"
                continue
            words = _words(self.root / text)
            table = file_kinds.suffix_of(text) in (".csv", ".tsv", ".jsonl", ".ndjson")
            named = sorted(words & names) if text in self.tables else []
            for known in (names, stems if table else {one for one in stems if len(one) > 2}):
                if known and 2 * len(words & known) >= len(known):
                    named = named or sorted(words & known)
            if named:
                raise DataError(
                    f"{self.root / text} names the image {named[0]} and may hold labels, and "
                    "without a metadata file it would not be read; turn it into metadata.csv with "
                    "the columns file_name and label, or move it out of the folder"
                )

    def count(self, used: Container[str]) -> None:
        """Count every file that is not used, by reason."""
        for name in self.tables:
            self.left.setdefault(name, NO_IMAGE)
        for name, reason in self.left.items():
            if name not in used:
                # A tool's folder is no class, and is not to look like one in a report.
                shown = PurePosixPath(name).name if reason == _IN_A_TOOL else name
                self.skipped.drop(reason, shown)

    def _folder(self, prefix: str, above: frozenset[str]) -> None:
        where = self.root / prefix
        real = os.path.realpath(where)
        if real in above:
            raise DataError(f"the linked folder {where} leads back into itself; remove the link")
        if (other := self._seen.setdefault(real, where)) != where:
            raise DataError(
                f"{where} and {other} are one folder by a link, and its images would count twice; remove the link"
            )
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"cannot list the folder {where}: {error.strerror}; make it readable or remove it"
            ) from error
        if not entries:
            self.skipped.remark("an empty folder", prefix.rstrip("/") or str(where))
        for entry in entries:
            name = f"{prefix}{entry.name}"
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"the name of {name!r} below {self.root} is not UTF-8; rename it") from None
            if entry.is_symlink() and not os.path.exists(entry.path):
                if not file_kinds.made_by_a_tool(entry.name, folder=True):
                    raise DataError(
                        f"{self.root / name} is a link to {os.readlink(entry.path)}, which is not "
                        "there; restore what it leads to, or remove the link"
                    )
                self.left[name] = _BY_A_TOOL
            elif entry.is_dir():
                if file_kinds.made_by_a_tool(entry.name, folder=True):
                    self._tool_folder(name)
                else:
                    self._folder(f"{name}/", above | {real})
            else:
                self._file(entry, name)

    def _tool_folder(self, name: str) -> None:
        for folder, _, files in os.walk(self.root / name):
            for file in files:
                path = (Path(folder) / file).relative_to(self.root).as_posix()
                self.left[path] = _IN_A_TOOL

    def _file(self, entry: os.DirEntry[str], name: str) -> None:
        lower = entry.name.lower()
        if file_kinds.made_by_a_tool(entry.name, folder=False):
            self.left[name] = _BY_A_TOOL
        elif not entry.is_file():
            self.left[name] = "neither a file nor a folder"
        elif entry.name in file_kinds.METADATA_NAMES:
            self.metadata.append(name)
        elif lower.rsplit(".", 1)[0] == "metadata" and "." in lower:
            self.misnamed.append(name)
        elif file_kinds.suffix_of(lower) in file_kinds.image_suffixes():
            self.images.append(name)
        elif file_kinds.suffix_of(lower) in file_kinds.TABLES:
            self.tables.append(name)
        elif file_kinds.how_to_convert(name, "") is None:
            self.left[name] = _NO_SUFFIX if file_kinds.image_head(self.root / name) else NO_IMAGE
        else:
            self.archives.append(name)

    def refuse(self) -> None:
        """Refuse files that are not read and may hold images or labels, and say how to convert them."""
        for name in self.misnamed:
            path = self.root / name
            fix = file_kinds.how_to_convert(str(path), str(path.parent)) or file_kinds.how_to_rename(name)
            raise DataError(f"{path} {fix}")
        tails = {
            "/".join(parts[at:]) for parts in (image.split("/") for image in self.images) for at in range(len(parts))
        }
        for name in self.archives:
            path = self.root / name
            inside = _listed(path)
            if not inside or not tails.issuperset(inside):
                raise DataError(f"{path} {file_kinds.how_to_convert(str(path), str(path.parent))}")
            self.left[name] = "an archive whose images are all unpacked"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_READ)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; make it readable or move it away") from error


def _words(path: Path) -> set[str]:
    """Return what may be file names in the head of a text file; binary files have none."""
    content = _head(path)
    if b"\0" in content[:1024]:
        return set()
    text = content.decode("utf-8", "replace")
    for sign in "\"'<>,;|\t=:[]{}()":
        text = text.replace(sign, "\n")
    words = [word.strip() for word in text.split("\n")] + text.split()
    return {word.replace("\\", "/").rsplit("/", 1)[-1] for word in words}


def _listed(path: Path) -> list[str]:
    """Return the names of the images in a zip or tar archive; none where it cannot be listed."""
    try:
        if file_kinds.suffix_of(path.name) == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        elif file_kinds.suffix_of(path.name) in (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"):
            with tarfile.open(path) as packed:
                names = packed.getnames()
        else:
            return []
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError):
        return []
    return [
        name
        for name in names
        if file_kinds.suffix_of(name) in file_kinds.image_suffixes()
        and not any(file_kinds.made_by_a_tool(part, folder=True) for part in name.split("/"))
    ]


def take_inventory(root: Path) -> Inventory:
    """List the files below a folder; `DataError` for a bad link, or a file that may hold images or labels unread."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the images")
    inventory = Inventory(root)
    inventory.refuse()
    return inventory


def count_unused(root: Path, used: Container[str], read: Sequence[str], skipped: Skipped) -> None:
    """Count files neither in ``used`` (whole paths) nor matched by ``read`` (lower-case patterns below ``root``)."""
    walk = Inventory(root)
    other = "of another view, subset or list"
    for name in (*walk.images, *walk.metadata, *walk.tables, *walk.archives, *walk.misnamed):
        walk.left[name] = f"image {other}" if name in walk.images else f"file {other}"
    for name, reason in walk.left.items():
        if str(root / name) not in used and not any(fnmatchcase(name.lower(), p) for p in read):
            skipped.drop(reason, name)
