"""What the loaders of published corpora share: a corpus of pictures, and a count of what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.readers.images import FilePicture, Picture, image_size
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import DataError

__all__ = ["Gather", "PublishedCorpus", "Skipped", "fit_box"]

_EXAMPLES = 3


class Skipped:
    """Counts what a loader left out, and what it kept with a remark, by reason.

    Nothing is left out without standing here: ``records kept + skipped.total`` is the number of
    records that the annotation names.
    """

    def __init__(self) -> None:
        self._dropped: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def drop(self, reason: str, what: str) -> None:
        """Count a record that is left out."""
        self._dropped[reason] += 1
        self._show(reason, what)

    def remark(self, reason: str, what: str, count: int = 1) -> None:
        """Count something odd that left no record out."""
        if count:
            self._remarks[reason] += count
            self._show(reason, what)

    def _show(self, reason: str, what: str) -> None:
        shown = self._examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(what)

    @property
    def total(self) -> int:
        """Number of records left out."""
        return self._dropped.total()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Records left out, by reason."""
        return dict(self._dropped)

    @property
    def remarks(self) -> Mapping[str, int]:
        """Things to know about what was kept, by kind."""
        return dict(self._remarks)

    def examples(self, reason: str) -> Sequence[str]:
        """Return the first few records or files that a reason was given for."""
        return tuple(self._examples.get(reason, ()))


@dataclass(frozen=True)
class PublishedCorpus:
    """One split of a published corpus; images are read when asked for.

    Parameters
    ----------
    name : str
        Corpus and split, such as ``rafdb-basic-aligned/test``.
    space : LabelSpace
        The label space of all records.
    records : sequence of Record
        The records, in the order of the annotation.
    pictures : sequence of Picture
        Where the image of each record lies.
    skipped : Skipped
        What the annotation names and the corpus has not.
    extras : mapping of str to ndarray
        Further annotation with one row per record, NaN where there is none: ``vad`` [N, 3] of
        EMOTIC on its scale of 1 to 10, ``landmarks`` [N, 5, 2] of RAF-DB in pixels.
    stated : mapping of str to int
        How many images, persons, rows or clips the annotation names, left out or not.
    """

    name: str
    space: LabelSpace
    records: Sequence[Record]
    pictures: Sequence[Picture]
    skipped: Skipped = field(default_factory=Skipped, compare=False)
    extras: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict, compare=False)
    stated: Mapping[str, int] = field(default_factory=dict, compare=False)

    def image(self, index: int) -> Image.Image:
        """Return the RGB image of one record.

        Raises
        ------
        DataError
            If the file cannot be read to its end.
        """
        return self.pictures[index].open()


def fit_box(box: Box, size: tuple[int, int]) -> Box | None:
    """Cut a box to the image: x to [0, width], y to [0, height].

    Returns
    -------
    tuple of float or None
        ``None`` where nothing is left of it.
    """
    left, top, right, bottom = box
    width, height = size
    left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
    return (left, top, right, bottom) if left < right and top < bottom else None


class Gather:
    """Collects the records of one split, and drops those whose image or box is unusable.

    Parameters
    ----------
    name : str
        Name of the corpus.
    space : LabelSpace
        Its label space.
    skipped : Skipped, optional
        Where drops are counted.
    check : bool
        Read every image to its end now. Otherwise only its presence is seen to and, where there
        is a box, the size in its head.
    """

    def __init__(
        self, name: str, space: LabelSpace, skipped: Skipped | None = None, check: bool = False
    ) -> None:
        self.name, self.space, self.check = name, space, check
        self.skipped = skipped or Skipped()
        self.stated: dict[str, int] = {}
        self._records: list[Record] = []
        self._pictures: list[Picture] = []
        self._extras: dict[str, list[npt.ArrayLike]] = {}
        self._sizes: dict[Path, tuple[int, int] | str] = {}

    def size(self, path: Path, key: str) -> tuple[int, int] | None:
        """Return the size of an image file; count a drop where it is missing or broken."""
        if path not in self._sizes:
            self._sizes[path] = self._look(path)
        found = self._sizes[path]
        if isinstance(found, str):
            self.skipped.drop(found, key)
            return None
        return found

    def _look(self, path: Path) -> tuple[int, int] | str:
        if not path.is_file():
            return "image missing"
        try:
            return FilePicture(path).open().size if self.check else image_size(path)
        except DataError:
            return "image cannot be read"

    def usable(self, picture: Picture, key: str) -> bool:
        """Tell whether an image is there, and whole where that is checked; count a drop if not."""
        if not picture.path.is_file():
            self.skipped.drop("image missing", key)
            return False
        if not self.check:
            return True
        if isinstance(picture, FilePicture):
            return self.size(picture.path, key) is not None
        try:
            picture.open()
        except DataError:
            self.skipped.drop("image cannot be read", key)
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

    def add(self, record: Record, picture: Picture, **extras: npt.ArrayLike) -> None:
        """Take a record in; every record of a corpus has the same extras."""
        self._records.append(record)
        self._pictures.append(picture)
        for name, row in extras.items():
            self._extras.setdefault(name, []).append(row)

    def __len__(self) -> int:
        return len(self._records)

    def corpus(self, missing: str) -> PublishedCorpus:
        """Return the corpus.

        Parameters
        ----------
        missing : str
            What to do where it is empty.

        Raises
        ------
        DataError
            If no record is left; the text counts why.
        """
        if not self._records:
            reasons = [f"{count} x {reason}" for reason, count in self.skipped.dropped.items()]
            why = f" (left out: {', '.join(reasons)})" if reasons else ""
            raise DataError(f"the split {self.name} is empty{why}; {missing}")
        return PublishedCorpus(
            self.name,
            self.space,
            tuple(self._records),
            tuple(self._pictures),
            self.skipped,
            {name: np.asarray(rows, np.float32) for name, rows in self._extras.items()},
            self.stated,
        )
