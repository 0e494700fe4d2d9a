"""What every corpus offers: images, their labels, and their subjects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.errors import LabelError


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a task, in their canonical order: a label's id is its place.

    ``multi`` says that a record may carry several labels at once.
    """

    name: str
    labels: tuple[str, ...]
    multi: bool

    def index(self, label: str) -> int:
        """Return the id of ``label``; a `LabelError` lists the labels of the space."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise LabelError(
                f"label {label!r} is not in the label space {self.name!r}. "
                f"Known labels: {', '.join(self.labels)}. Correct the label in the metadata, "
                "or name a label space that has it (data.labels)."
            ) from None


@dataclass(frozen=True)
class Record:
    """One image with one person in it: the unit of ``privacy.unit: record``.

    ``key`` is unique within the corpus. ``subject`` is the person shown, for ``privacy.unit:
    person`` and for splits that keep persons apart. ``attributes`` are perceived ones, such as
    ``{"age_group": "adult"}``. ``box`` is ``(left, top, right, bottom)`` in pixels.
    """

    key: str
    labels: tuple[int, ...]
    subject: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None


class Corpus(Protocol):
    """A sequence of records whose images are made or read when asked for."""

    @property
    def name(self) -> str:
        """Short name of the corpus."""

    @property
    def space(self) -> LabelSpace:
        """The label space all records share."""

    @property
    def records(self) -> Sequence[Record]:
        """The records, in a fixed order."""

    def image(self, index: int) -> Image.Image:
        """Return the RGB image of one record."""


def targets(corpus: Corpus, indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
    """Return the 0/1 label matrix, shape ``[records, labels]``."""
    chosen = range(len(corpus.records)) if indices is None else indices
    out = np.zeros((len(chosen), len(corpus.space.labels)), np.float32)
    for row, i in enumerate(chosen):
        out[row, list(corpus.records[i].labels)] = 1.0
    return out


def image_of(key: str) -> str:
    """Return the image that a record's key names: the key without the number of the person."""
    return re.sub(r"#\d+$", "", key)
