"""What every corpus offers: images, their labels and subjects; and the published label spaces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.errors import ConfigError, LabelError


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a task: a label's id is its place; with ``multi`` a record may carry several at once."""

    name: str
    labels: tuple[str, ...]
    multi: bool

    def index(self, label: str) -> int:
        """Return the id of ``label``; a `LabelError` lists the labels of the space."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise LabelError(
                f"label {label!r} is not in the label space {self.name!r}. Known labels: {', '.join(self.labels)}. "
                "Correct the label in the metadata, or name a label space that has it (data.labels)."
            ) from None


class Moment(NamedTuple):
    """Where a frame stands in a clip."""

    clip: str
    number: int  # of the frame
    video: Path | None = None  # that it is read from, and whose frame rate holds


@dataclass(frozen=True)
class Record:
    """One image with one person in it: the unit of ``privacy.unit: record``.

    ``key`` is unique within the corpus. ``subject`` is the person shown, for ``privacy.unit:
    person`` and for splits that keep persons apart. ``attributes`` are perceived ones, such as
    ``{"age_group": "adult"}``. ``box`` is ``(left, top, right, bottom)`` in pixels. ``moment``
    is that of a frame of a clip.
    """

    key: str
    labels: tuple[int, ...]
    subject: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None
    moment: Moment | None = None


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


def targets(corpus: Corpus) -> npt.NDArray[np.float32]:
    """Return the 0/1 label matrix, shape ``[records, labels]``."""
    return label_matrix(corpus.records, corpus.space)


def label_matrix(records: Sequence[Record], space: LabelSpace) -> npt.NDArray[np.float32]:
    """Return the 0/1 matrix of some records' labels in a label space, shape ``[records, labels]``."""
    out = np.zeros((len(records), len(space.labels)), np.float32)
    for row, record in zip(out, records, strict=True):
        row[list(record.labels)] = 1.0
    return out


def image_of(key: str) -> str:
    """Return the image that a record's key names: the key without the number of the person."""
    return re.sub(r"#\d+$", "", key)


_EXAMPLES = 3


@dataclass
class Skipped:
    """Counts by reason what was ``dropped`` and what kept with a remark; records kept + ``total`` are all named."""

    dropped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, what: str) -> None:
        """Count a record that is left out."""
        self.dropped[reason] += 1
        self._show(reason, what)

    def remark(self, reason: str, what: str, count: int = 1) -> None:
        """Count something odd that left no record out."""
        if count:
            self.remarks[reason] += count
            self._show(reason, what)

    def _show(self, reason: str, what: str) -> None:
        shown = self._examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(what)

    @property
    def total(self) -> int:
        """Number of records left out."""
        return self.dropped.total()

    def examples(self, reason: str) -> Sequence[str]:
        """Return the first few records or files that a reason was given for."""
        return tuple(self._examples.get(reason, ()))

    def merge(self, other: Skipped) -> None:
        """Add another count to this one."""
        self.dropped += other.dropped
        self.remarks += other.remarks
        for reason, shown in other._examples.items():
            for what in shown:
                self._show(reason, what)


def _space(name: str, labels: str, multi: bool = False) -> LabelSpace:
    return LabelSpace(name, tuple(labels.split(", ")), multi)


EMOTIC = _space(
    "emotic",
    "Affection, Anger, Annoyance, Anticipation, Aversion, Confidence, Disapproval, Disconnection, Disquietment, "
    "Doubt/Confusion, Embarrassment, Engagement, Esteem, Excitement, Fatigue, Fear, Happiness, Pain, Peace, "
    "Pleasure, Sadness, Sensitivity, Suffering, Surprise, Sympathy, Yearning",
    multi=True,
)
"""The 26 discrete categories of EMOTIC (Kosti et al., arXiv 2003.13401), alphabetical."""

BASIC = LabelSpace("basic", ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"), multi=False)
"""The seven basic expressions in the order of RAF-DB; RAF-DB's own ids start at 1."""

COMPOUND = _space(
    "compound",
    "Happily Surprised, Happily Disgusted, Sadly Fearful, Sadly Angry, Sadly Surprised, Sadly Disgusted, "
    "Fearfully Angry, Fearfully Surprised, Angrily Surprised, Angrily Disgusted, Disgustedly Surprised",
)
"""The eleven compound expressions in the order of RAF-DB; RAF-DB's own ids start at 1."""

CAERS = LabelSpace("caers", ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"), multi=False)
"""The seven classes of CAER-S in the order of its public annotation files, from 0."""

CEXPR = _space(
    "cexpr",
    "Fearfully Surprised, Happily Surprised, Sadly Surprised, Disgustedly Surprised, "
    "Angrily Surprised, Sadly Fearful, Sadly Angry",
)
"""The seven classes of the C-EXPR-DB challenge, from 0; its id 7, Other, is never scored."""

FER = LabelSpace("fer2013", ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"), multi=False)
"""The seven classes of FER-2013 in the order of its table, from 0."""

COMPOUND_TO_CEXPR: Mapping[int, int] = {
    place: CEXPR.labels.index(label) for place, label in enumerate(COMPOUND.labels) if label in CEXPR.labels
}
"""From an id of :data:`COMPOUND` to that of :data:`CEXPR`; four compound classes have none."""

SPACES = {space.name: space for space in (EMOTIC, BASIC, COMPOUND)}
"""The spaces of the embedded corpus; the tokenizer of the embedded model is made from them."""

PUBLISHED_SPACES: Mapping[str, LabelSpace] = {**SPACES, **{space.name: space for space in (CAERS, CEXPR, FER)}}
"""The spaces of all published corpora."""


def label_space(name: str) -> LabelSpace:
    """Return a published label space by name."""
    if name not in SPACES:
        raise ConfigError(f"unknown label space {name!r}; choose one of {', '.join(SPACES)}")
    return SPACES[name]
