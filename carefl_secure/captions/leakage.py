"""Whether captions name the emotion they should leave to the learner.

A caption that says "a happy child" gives the label away. The check counts words, it does not judge
meaning: "in tears" passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from carefl_secure.data.records import Corpus, LabelSpace
from carefl_secure.errors import DataError

# How the words of the published spaces go on: a stem is followed by letters up to a word's end.
# Where a bare stem begins other words too ("sad" begins "saddle"), the endings are listed.
_WORDS: Mapping[str, str] = {
    "affection": "affection",
    "ang(?:er|ri|ry)": "anger angrily angry",
    "annoy": "annoyance",
    "anticipat": "anticipation",
    "avers": "aversion",
    "confiden": "confidence",
    "confus": "confusion",
    "disapprov": "disapproval",
    "disconnect": "disconnection",
    "disgust": "disgustedly",
    "disquiet": "disquietment",
    "doubt": "doubt",
    "embarrass": "embarrassment",
    r"engag(?:ed|ing|ement|es|e)\b": "engagement",
    "esteem": "esteem",
    "excit": "excitement",
    "fatigu": "fatigue",
    "(?:fear|afraid)": "fear fearfully",
    "happ(?:y|i)": "happily happiness happy",
    "neutral": "neutral",
    r"pain(?:s|ed|ful|fully)?\b": "pain",
    "peace": "peace",
    r"pleas(?:ed|ure|ures|ant|antly|urable)\b": "pleasure",
    r"sad(?:ness|ly|der|dest|dened|den)?\b": "sad sadly sadness",
    "sensitiv": "sensitivity",
    "suffer": "suffering",
    "surpris": "surprise surprised",
    "sympath": "sympathy",
    r"yearn(?:s|ed|ing)?\b": "yearning",
}
_STEMS = {word: stem for stem, words in _WORDS.items() for word in words.split()}
_ENDINGS = re.compile(r"(?:fulness|ness|ment|ation|ition|ion|ance|ence|ing|edly|ed|ily|ly|y|e)$")


@dataclass(frozen=True)
class Leakage:
    """One label's share of captions that name it."""

    label: str
    word: float  # of all captions, with the label's own word
    stem: float  # of all captions, with any word of its stem
    own: float | None  # the latter among the records that carry the label; None where none does


@dataclass(frozen=True)
class LeakageReport:
    """What the captions of a corpus give away."""

    captions: int
    word: float  # share that names any label of the space by its own word
    stem: float  # and by any word of its stem
    own: float  # share that names a label of its own record, by stem
    labels: tuple[Leakage, ...]  # in the order of the space

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values: shares only, no caption."""
        return asdict(self)


def leakage(corpus: Corpus, captions: Sequence[str]) -> LeakageReport:
    """Look for the words of a corpus's label space in its captions, one for each record."""
    count = len(corpus.records)
    if not count or len(captions) != count:
        raise DataError(f"{len(captions)} captions do not fit {count} records; give one for each")
    words, stems = _patterns(corpus.space)
    exact = [[bool(p.search(c)) for p in words] for c in captions]
    loose = [[bool(p.search(c)) for p in stems] for c in captions]
    rows = []
    for k, label in enumerate(corpus.space.labels):
        carriers = [i for i, record in enumerate(corpus.records) if k in record.labels]
        named = sum(loose[i][k] for i in carriers)
        word, stem = (sum(row[k] for row in found) / count for found in (exact, loose))
        rows.append(Leakage(label, word, stem, named / len(carriers) if carriers else None))
    own = sum(any(loose[i][k] for k in record.labels) for i, record in enumerate(corpus.records))
    word, stem = (sum(map(any, found)) / count for found in (exact, loose))
    return LeakageReport(count, word, stem, own / count, tuple(rows))


def _patterns(space: LabelSpace) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    """Compile each label's own words and its stems; either side of a slash names it."""
    exact, loose = [], []
    for label in space.labels:
        sides = [re.findall(r"\w+", side.lower()) for side in label.split("/")]
        exact.append(_either([[re.escape(word) + r"\b" for word in side] for side in sides]))
        loose.append(_either([[_stem(word) for word in side] for side in sides]))
    return exact, loose


def _either(sides: list[list[str]]) -> re.Pattern[str]:
    # Every word of one side, in whatever order: one look ahead for each.
    options = ["".join(rf"(?=.*\b{word})" for word in side) for side in sides if side]
    return re.compile(rf"\A(?:{'|'.join(options)})" if options else r"(?!)", re.I | re.S)


def _stem(word: str) -> str:
    known = _STEMS.get(word)
    if known is not None:
        return known
    bare = _ENDINGS.sub("", word)
    return re.escape(bare) if len(bare) >= 4 else re.escape(word) + r"\b"
