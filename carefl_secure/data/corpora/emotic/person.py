"""One annotated person of EMOTIC, and how a split adds them, from any form of the corpus, in any spelling in use.

Unknown categories raise `LabelError`, other unknown words `DataError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from carefl_secure.data.corpora.base import FileCorpus, SplitBuilder
from carefl_secure.data.readers.images import ImageArray, ImageFile, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.records import EMOTIC, Record
from carefl_secure.errors import DataError, LabelError

Vad = tuple[float, float, float]  # valence, arousal and dominance on the scale of 1 to 10; NaN where not annotated


def _bare(word: str) -> str:
    return re.sub(r"[^a-z]", "", word.lower())


_KNOWN = {_bare(label): place for place, label in enumerate(EMOTIC.labels)} | {
    "disquitement": EMOTIC.labels.index("Disquietment"),
    "doubtconfuzion": EMOTIC.labels.index("Doubt/Confusion"),
    "affections": EMOTIC.labels.index("Affection"),
}
_GENDERS = {"male": "male", "m": "male", "female": "female", "f": "female"}
_AGES = {"kid": "kid", "child": "kid", "teenager": "teenager", "teen": "teenager", "adult": "adult"}


def category(word: str, origin: str) -> int:
    """Return the id of a category, by name and never by position."""
    place = _KNOWN.get(_bare(word))
    if place is None:
        raise LabelError(
            f"{origin}: {word!r} is not one of EMOTIC's 26 categories; correct it. Known: {', '.join(EMOTIC.labels)}"
        )
    return place


def category_ids(words: Iterable[str], origin: str) -> tuple[int, ...]:
    """Return the sorted ids of the union of some annotators' words."""
    return tuple(sorted({category(word, origin) for word in words}))


def _word(value: str, known: dict[str, str], what: str, origin: str) -> str | None:
    if not value.strip():
        return None
    if _bare(value) not in known:
        raise DataError(f"{origin}: the {what} {value!r} is unknown; known are {', '.join(sorted(known))}")
    return known[_bare(value)]


def gender(value: str, origin: str) -> str | None:
    """Return the perceived gender, ``None`` where the annotation has none."""
    return _word(value, _GENDERS, "gender", origin)


def age_group(value: str, origin: str) -> str | None:
    """Return ``kid``, ``teenager`` or ``adult``, ``None`` where the annotation has none."""
    return _word(value, _AGES, "age", origin)


def labels_of_author(place: str) -> tuple[tuple[int, ...], Vad] | None:
    """Return the labels that the author gave later to a test image that lacks them (github.com/rkosti/emotic #13)."""
    if place != "emodb_small/images/12ctuwhai2qxczp2wf.jpg":
        return None
    words = ("Affection", "Confidence", "Excitement", "Happiness", "Peace", "Sympathy")
    return category_ids(words, place), (8.0, 6.0, 7.0)


FOLDERS = ("ade20k", "emodb_small", "framesdb", "mscoco")  # the four sources; the release of 2017 lacks ``framesdb``
SPLITS = ("train", "val", "test")
ONE_EACH = "every person has exactly one category: this copy has lost labels"
View = str  # ``image`` or ``person``


@dataclass(frozen=True)
class Person:
    """One annotated person, before the image is opened."""

    place: str  # folder and name of the image, with forward slashes
    number: int  # of the person in the image, from 1
    box: Box
    labels: tuple[int, ...]
    vad: Vad
    gender: str | None
    age: str | None
    stated: tuple[int, int] | None = None  # width and height of the image according to the annotation

    @property
    def key(self) -> str:
        """The image, and the person's number from the second on."""
        return self.place if self.number == 1 else f"{self.place}#{self.number}"

    def record(self, box: Box | None) -> Record:
        """Return the record, with the box as it is in the image that goes with it."""
        source, slash, _ = self.place.partition("/")
        known = {"gender": self.gender, "age_group": self.age, "source": source if slash else None}
        attributes = {name: value for name, value in known.items() if value is not None}
        return Record(self.key, self.labels, None, attributes, box)


def image_root(root: Path, release_2017: bool = False) -> Path | None:
    """Return the folder that holds ``mscoco`` and the others, where there is one."""
    names = ("cvpr_emotic", "emotic", ".") if release_2017 else ("emotic", "emotic/emotic", ".")
    for name in (*names, "cvpr_emotic"):
        if any((root / name / folder).is_dir() for folder in FOLDERS):
            return root / name
    return None


def _fault(person: Person) -> str | None:
    """Return why a person cannot be used, or ``None``."""
    if not person.labels:
        return "no category"
    if not all(math.isfinite(value) for value in person.vad):
        return "no valence, arousal or dominance"
    if not all(1 <= value <= 10 for value in person.vad):
        return "valence, arousal or dominance outside 1 to 10"
    return None


def add_person(builder: SplitBuilder, person: Person, root: Path, view: View) -> None:
    """Add one person, or count why not: the whole image with a box, or what is inside it in view ``person``."""
    if not person.labels and (given := labels_of_author(person.place)):
        builder.skipped.remark("labels as the author gave them later", person.key)
        person = replace(person, labels=given[0], vad=given[1])
    if fault := _fault(person):
        builder.skipped.drop(fault, person.key)
        return
    path = place(root, person.place, person.key)
    size = builder.size(path, person.key)
    if size is None:
        return
    if person.stated not in (None, size):
        builder.skipped.remark("image has not the size that the annotation states", person.key)
    box = builder.fitted(person.box, size, person.key)
    if box is None:
        return
    whole = view == "image"
    builder.add(person.record(box if whole else None), ImageFile(path, None if whole else box), vad=person.vad)


def add_array(builder: SplitBuilder, person: Person, picture: ImageArray, box: Box | None) -> None:
    """Add one person of a preprocessed form, in the wanted view, or count why not; ``box`` is in its pixels."""
    if fault := _fault(person):
        builder.skipped.drop(fault, person.key)
    elif builder.usable(picture, person.key):
        if box is not None:
            rows, columns = picture.shape()[:2]
            box = builder.fitted(box, (columns, rows), person.key)
            if box is None:
                return
        builder.add(person.record(box), picture, vad=person.vad)


def finish(builder: SplitBuilder) -> FileCorpus:
    """Return the corpus of a table, with a remark where its labels were cut down to one each."""
    builder.stated["persons"] = len(builder) + builder.skipped.total
    corpus = builder.corpus("check the table and what it names")
    if len(corpus.records) > 1 and all(len(record.labels) == 1 for record in corpus.records):
        corpus.skipped.remark(ONE_EACH, corpus.name)
    return corpus
