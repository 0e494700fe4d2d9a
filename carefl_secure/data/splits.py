"""Cutting one corpus into train, public and test, and looking at a part of a corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.records import Corpus, LabelSpace, Record, image_of
from carefl_secure.errors import ConfigError, DataError


@dataclass(frozen=True)
class Subset:
    """Some records of a corpus, in the order of ``indices``, as a corpus."""

    corpus: Corpus
    indices: Sequence[int]

    def __post_init__(self) -> None:
        total = len(self.corpus.records)
        if any(not 0 <= index < total for index in self.indices):
            raise DataError(f"a subset asks for a record outside 0..{total - 1} of the corpus")

    @property
    def name(self) -> str:
        """Short name of the whole corpus."""
        return self.corpus.name

    @property
    def space(self) -> LabelSpace:
        """The label space of the whole corpus."""
        return self.corpus.space

    @cached_property
    def records(self) -> Sequence[Record]:
        """The chosen records."""
        return [self.corpus.records[index] for index in self.indices]

    def image(self, index: int) -> Image.Image:
        """Return the image of the ``index``-th chosen record."""
        return self.corpus.image(self.indices[index])


def groups(corpus: Corpus, equal: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """Return the records that belong together, each in one group: one person's, and one image's.

    Records are joined by an equal ``subject``, by an equal image (see `image_of`), and by one sequence of ``equal``;
    joining is transitive. The order of groups depends on keys and subjects only, not on that of the records.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    images = [("image", image_of(record.key)) for record in corpus.records]
    for image, record in zip(images, corpus.records, strict=True):
        if record.subject is not None:
            first, second = sorted((root(image), root(("subject", record.subject))))
            parent[second] = first
    for same in equal:
        for index in same[1:]:
            first, second = sorted((root(images[same[0]]), root(images[index])))
            parent[second] = first
    members: dict[tuple[str, str], list[int]] = {}
    for index, image in enumerate(images):
        members.setdefault(root(image), []).append(index)
    return [members[name] for name in sorted(members)]


def split(
    corpus: Corpus, fractions: Mapping[str, float], seed: int, equal: Sequence[Sequence[int]] = ()
) -> dict[str, list[int]]:
    """Cut a corpus so that no person and no image occurs in two parts; return sorted indices.

    All groups (see :func:`groups`, also for ``equal``) are shuffled by ``seed`` and given one by one to the part that
    lacks most of its share, so part sizes are within one group of the request. ``fractions`` sum to 1; a share of 0
    gives an empty part, and any other part that stays empty raises `DataError`.
    """
    shares = list(fractions.values())
    if not all(math.isfinite(share) and share >= 0 for share in shares) or not math.isclose(
        math.fsum(shares), 1, abs_tol=1e-9
    ):
        raise ConfigError(f"split shares must be at least 0 and sum to 1, not {dict(fractions)}")
    together = groups(corpus, equal)
    lacking = {name: share * len(corpus.records) for name, share in fractions.items() if share > 0}
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for place in np.random.default_rng(seed).permutation(len(together)):
        name = max(lacking, key=lambda part: lacking[part])
        parts[name].extend(together[place])
        lacking[name] -= len(together[place])
    empty = [name for name in lacking if not parts[name]]
    if empty:
        raise DataError(
            f"{len(together)} persons or images are too few for the parts {', '.join(lacking)}: "
            f"{', '.join(empty)} would be empty; add records or change the fractions"
        )
    return {name: sorted(indices) for name, indices in parts.items()}


Indices = npt.NDArray[np.int64]


def subject_groups(records: Sequence[Record], indices: Indices | None = None) -> list[Indices]:
    """Group records by ``subject``: one ascending array of places per person.

    Persons come in the order of their first records. Places are those in ``indices``, or in
    ``records`` by default. A record without a subject is a person of its own.

    Guarantees
    ----------
    Every record is in exactly one array. Whether two records show one person is taken from the
    corpus: two names for one person make two persons, and each is protected on its own.
    """
    chosen = range(len(records)) if indices is None else indices.tolist()
    members: dict[tuple[str, str | int], list[int]] = {}
    for place, index in enumerate(chosen):
        subject = records[index].subject
        key = ("record", place) if subject is None else ("subject", subject)
        members.setdefault(key, []).append(place)
    return [np.array(group, np.int64) for group in members.values()]


def first_of_each(groups: Sequence[Indices], most: int) -> Indices:
    """Keep the first ``most`` records of every person of `subject_groups`, a public rule; places are ascending."""
    if most < 1:
        raise ConfigError(f"privacy.records_per_person is {most}; keep at least 1")
    kept = [group[:most] for group in groups]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
