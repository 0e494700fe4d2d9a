"""What the loaders share: the description of a format, a corpus of files, and its builder.

Loaders raise `DataError` where the layout or the annotation is missing or malformed or a split is
empty, and `LabelError` for a label outside the label space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.readers.images import ImageSource, image_size
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.records import Corpus, LabelSpace, Record, Skipped
from carefl_secure.errors import DataError
from carefl_secure.progress import Reporter, SilentReporter


@dataclass(frozen=True)
class ReadOptions:
    """How to read a corpus; options that do not apply to it are ignored."""

    task: str = "auto"  # the label space; auto where the corpus brings its own labels
    view: str = "auto"  # one of the format's views, or auto
    fold: int = 0
    every: int = 1  # take one video frame in so many
    space: LabelSpace | None = None  # that the parties agreed on, for a corpus that brings its own
    by_client: bool = False  # an image folder has a folder for each client, above its classes or metadata
    drop_undeclared: bool = False  # leave out records with a label outside space instead of refusing them
    reporter: Reporter = field(default_factory=SilentReporter)


@dataclass(frozen=True)
class CorpusFormat:
    """One layout of a corpus on disk: how to recognise it, and how to read it.

    Parameters
    ----------
    name, looks_like : str
        The value of ``data.format``; its distinguishing marks in words, for errors and the guide.
    tasks : callable
        Returns the label spaces that a folder can be read with, none where the marks are missing.
        The second argument says that ``data.format`` named the format.
    load : callable
        Returns the splits by name.
    views, splits : tuple of str
        The values of ``data.view``, the default first; the splits of a complete copy.
    annotation : tuple of str
        Patterns of the files that annotate the images, below the root and in lower case. Of a
        published corpus every other file that is no record is counted as skipped.
    own_labels : bool
        Whether labels come from the folder itself rather than from a published list.
    """

    name: str
    looks_like: str
    tasks: Callable[[Path, bool], tuple[str, ...]]
    load: Callable[[Path, ReadOptions], Mapping[str, Corpus]]
    views: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    annotation: tuple[str, ...] = ()
    own_labels: bool = False


@dataclass(frozen=True)
class FileCorpus:
    """One split of a corpus whose images are read on access.

    ``name`` is corpus and split, such as ``rafdb-basic-aligned/test``. ``extras`` holds further annotation with one
    row per record, NaN where there is none: ``vad`` [N, 3] of EMOTIC on its scale of 1 to 10, ``landmarks`` [N, 5, 2]
    of RAF-DB in pixels. ``stated`` counts the images, persons, rows or clips that the annotation names, left out or
    not. ``subjects_are`` says what a subject is: a ``person``, or the ``video`` of a frame. ``named`` are the files
    that records were read from, or left out for a reason that ``skipped`` counts.
    """

    name: str
    space: LabelSpace
    records: Sequence[Record]
    sources: Sequence[ImageSource]
    skipped: Skipped = field(default_factory=Skipped, compare=False)
    extras: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict, compare=False)
    stated: Mapping[str, int] = field(default_factory=dict, compare=False)
    subjects_are: str = "person"
    named: frozenset[str] = field(default_factory=frozenset, compare=False)

    def image(self, index: int) -> Image.Image:
        """Return the RGB image of one record; raise `DataError` if its file is incomplete."""
        return self.sources[index].open()


def fit_box(box: Box, size: tuple[int, int]) -> Box | None:
    """Cut a box to the image: x to [0, width], y to [0, height]; ``None`` if nothing is left."""
    left, top, right, bottom = box
    width, height = size
    left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
    return (left, top, right, bottom) if left < right and top < bottom else None


class SplitBuilder:
    """Collects the records of one split, and drops those whose image or box is unusable."""

    def __init__(self, name: str, space: LabelSpace) -> None:
        self.name, self.space, self.skipped = name, space, Skipped()
        self.stated: dict[str, int] = {}
        self._records: list[Record] = []
        self._sources: list[ImageSource] = []
        self._extras: dict[str, list[npt.ArrayLike]] = {}
        self._sizes: dict[Path, tuple[int, int] | str] = {}
        self.named: set[str] = set()

    def size(self, path: Path, key: str) -> tuple[int, int] | None:
        """Return the size of an image file; count a drop where it is missing or broken."""
        self.named.add(str(path))
        if path not in self._sizes:
            try:
                self._sizes[path] = image_size(path) if path.is_file() else "image missing"
            except DataError:
                self._sizes[path] = "image cannot be read"
        found = self._sizes[path]
        if isinstance(found, str):
            self.skipped.drop(found, key)
            return None
        return found

    def usable(self, source: ImageSource, key: str) -> bool:
        """Tell whether the file of an image is there; count a drop if not."""
        self.named.add(str(source.path))
        if not source.path.is_file():
            self.skipped.drop("image missing", key)
            return False
        return True

    def fitted(self, box: Box, size: tuple[int, int], key: str) -> Box | None:
        """Return the part of a box inside an image; count a drop where there is none."""
        inside = fit_box(box, size)
        if inside is None:
            self.skipped.drop("box outside the image or empty", key)
        elif inside != box:
            self.skipped.remark("box cut to the image", key)
        return inside

    def add(self, record: Record, picture: ImageSource, **extras: npt.ArrayLike) -> None:
        """Take a record in; every record of a corpus has the same extras."""
        self.named.add(str(picture.path))
        self._records.append(record)
        self._sources.append(picture)
        for name, row in extras.items():
            self._extras.setdefault(name, []).append(row)

    def __len__(self) -> int:
        return len(self._records)

    def corpus(self, missing: str, subjects_are: str = "person") -> FileCorpus:
        """Return the corpus; an empty one raises `DataError` with the reasons and ``missing``."""
        if not self._records:
            reasons = [f"{count} x {reason}" for reason, count in self.skipped.dropped.items()]
            why = f" (left out: {', '.join(reasons)})" if reasons else ""
            raise DataError(f"the split {self.name} is empty{why}; {missing}")
        extras = {name: np.asarray(rows, np.float32) for name, rows in self._extras.items()}
        kept = (tuple(self._records), tuple(self._sources), self.skipped, extras, self.stated)
        return FileCorpus(self.name, self.space, *kept, subjects_are, frozenset(self.named))
