"""One annotated person of EMOTIC, and how a split adds them, from any form of the corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from carefl_secure.data.corpora.base import FileCorpus, SplitBuilder
from carefl_secure.data.corpora.emotic.vocabulary import Vad, labels_of_author, vad_fault
from carefl_secure.data.readers.images import ImageArray, ImageFile, place
from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.records import Record

FOLDERS = ("ade20k", "emodb_small", "framesdb", "mscoco")
"""The four sources; the release of 2017 lacks ``framesdb``."""

SPLITS = ("train", "val", "test")
ONE_EACH = "every person has exactly one category: this copy has lost labels"
View = str
"""``image`` or ``person``."""


@dataclass(frozen=True)
class Person:
    """One annotated person, before the image is opened.

    ``place`` is folder and name of the image, with forward slashes. ``number`` counts the persons
    of an image from 1. ``stated`` is the image's width and height according to the annotation.
    """

    place: str
    number: int
    box: Box
    labels: tuple[int, ...]
    vad: Vad
    gender: str | None
    age: str | None
    stated: tuple[int, int] | None = None

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
    return vad_fault(person.vad) if person.labels else "no category"


def add_person(builder: SplitBuilder, person: Person, root: Path, view: View) -> None:
    """Add one person, or count why not.

    ``root`` holds the four sources. View ``image`` is the whole image with a box, ``person`` what is inside the box.
    """
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
    """Add one person of a preprocessed form, or count why not.

    ``picture`` is in the wanted view, and ``box`` in its pixels; the person's own box is not used.
    """
    if fault := _fault(person):
        builder.skipped.drop(fault, person.key)
    elif builder.usable(picture, person.key):
        if box is not None:
            rows, columns = picture.shape()[:2]
            box = builder.fitted(box, (columns, rows), person.key)
            if box is None:
                return
        builder.add(person.record(box), picture, vad=person.vad)


class PersonCounter:
    """Numbers the persons of each image, in the order of a table."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, name: str) -> int:
        """Return the number of the image's next person, from 1."""
        self._seen[name] = number = self._seen.get(name, 0) + 1
        return number


def finish(builder: SplitBuilder) -> FileCorpus:
    """Return the corpus of a table, with a remark where its labels were cut down to one each."""
    builder.stated["persons"] = len(builder) + builder.skipped.total
    corpus = builder.corpus("check the table and what it names")
    if len(corpus.records) > 1 and all(len(record.labels) == 1 for record in corpus.records):
        corpus.skipped.remark(ONE_EACH, corpus.name)
    return corpus
