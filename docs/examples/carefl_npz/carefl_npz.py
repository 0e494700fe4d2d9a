"""A corpus from outside carefl-secure: all images of a folder in one file, ``images.npz``.

Its arrays are ``images`` (uint8, [N, height, width, 3]), ``labels`` and ``subjects`` (text, [N]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carefl_secure.data.corpora.base import CorpusFormat, ReadOptions
from carefl_secure.data.records import Corpus, LabelSpace, Record
from carefl_secure.errors import DataError

FILE = "images.npz"


@dataclass(frozen=True)
class NpzCorpus:
    """Records whose images are rows of one array."""

    name: str
    space: LabelSpace
    records: Sequence[Record]
    pixels: NDArray[np.uint8]

    def image(self, index: int) -> Image.Image:
        """Return the RGB image of one record."""
        return Image.fromarray(self.pixels[index], "RGB")


def load(root: Path, options: ReadOptions) -> Mapping[str, Corpus]:
    """Read the file; it has no splits of its own, so everything is ``all``."""
    try:
        with np.load(root / FILE, allow_pickle=False) as found:
            images, labels, subjects = found["images"], found["labels"], found["subjects"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(f"{root / FILE} cannot be read: {error}; restore the file") from error
    words = labels.astype(str).tolist()
    space = options.space or LabelSpace(root.name, tuple(sorted(set(words))), False)
    records = tuple(
        Record(key=str(row), labels=(space.index(word),), subject=str(subject))
        for row, (word, subject) in enumerate(zip(words, subjects, strict=True))
    )
    return {"all": NpzCorpus(f"npz/{root.name}", space, records, images)}


def label_spaces(root: Path, named: bool) -> tuple[str, ...]:
    """Return no published label space: the labels come from the file."""
    return ()


FORMAT = CorpusFormat("npz", looks_like="one file, images.npz", tasks=label_spaces, load=load, own_labels=True)
