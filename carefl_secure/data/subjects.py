"""Which records show one and the same person, for ``privacy.unit: person``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Record
from carefl_secure.errors import ConfigError

__all__ = ["first_of_each", "subject_groups"]

Indices = npt.NDArray[np.int64]


def subject_groups(records: Sequence[Record], indices: Indices | None = None) -> list[Indices]:
    """Group records by ``subject``.

    Parameters
    ----------
    indices : ndarray of int64, optional
        Only these records; all by default.

    Returns
    -------
    list of ndarray of int64
        One array per person, in the order of their first records: places in ``indices`` (in
        ``records`` by default), ascending. A record without a subject is a person of its own.

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
    """Keep at most ``most`` records of every person: the first ones, which is a public rule.

    Parameters
    ----------
    groups : sequence of ndarray of int64
        From `subject_groups`.
    most : int
        At least 1.

    Returns
    -------
    ndarray of int64
        The kept places, ascending.

    Raises
    ------
    ConfigError
        ``most`` is below 1.
    """
    if most < 1:
        raise ConfigError(f"privacy.records_per_person is {most}; keep at least 1")
    kept = [group[:most] for group in groups]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
