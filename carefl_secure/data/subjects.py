"""Which records show one and the same person, for ``privacy.unit: person``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Record
from carefl_secure.errors import ConfigError

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
    """Keep at most ``most`` >= 1 records of every person: the first ones, which is a public rule.

    ``groups`` come from `subject_groups`; the kept places are ascending.
    """
    if most < 1:
        raise ConfigError(f"privacy.records_per_person is {most}; keep at least 1")
    kept = [group[:most] for group in groups]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
