"""The words of EMOTIC's annotations, in all the spellings that are in circulation.

Unknown categories raise `LabelError`, other unknown words `DataError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from carefl_secure.data.label_spaces import EMOTIC
from carefl_secure.errors import DataError, LabelError

Vad = tuple[float, float, float]
"""Valence, arousal and dominance on the scale of 1 to 10; NaN where not annotated."""


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


def vad_fault(vad: Sequence[float]) -> str | None:
    """Return why valence, arousal and dominance cannot be used, or ``None``."""
    if len(vad) != 3 or not all(math.isfinite(value) for value in vad):
        return "no valence, arousal or dominance"
    if not all(1 <= value <= 10 for value in vad):
        return "valence, arousal or dominance outside 1 to 10"
    return None


def labels_of_author(place: str) -> tuple[tuple[int, ...], Vad] | None:
    """Return the labels that the corpus' author later gave for an image that lacks them.

    One image of the test split is affected (github.com/rkosti/emotic, issue 13). ``place`` is
    folder and name of the image.
    """
    if place != "emodb_small/images/12ctuwhai2qxczp2wf.jpg":
        return None
    words = ("Affection", "Confidence", "Excitement", "Happiness", "Peace", "Sympathy")
    return category_ids(words, place), (8.0, 6.0, 7.0)
