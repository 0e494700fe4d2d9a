"""Captions put to the test: controls that show whether they help, and whether they name the emotion.

A record gets its own caption, or that of a control. If ``own`` beats ``none`` but ``shuffled`` does so too, the words
helped without informing.

* ``none``: no caption.
* ``own``: the caption of the record's own image.
* ``shuffled``: the caption of some public record.
* ``wrong``: the caption of a public record whose labels have least in common with the record's.
* ``constant``: the same words for every record.

Any of them can lose some captions (:func:`drop`), as where a captioner failed.

A caption that says "a happy child" gives the label away. The leakage check counts words, it does not judge meaning:
"in tears" passes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Corpus, LabelSpace, targets
from carefl_secure.errors import ConfigError, DataError

Control = Literal["none", "own", "shuffled", "wrong", "constant"]

CONTROLS: tuple[Control, ...] = get_args(Control)

CONSTANT = "a person in a scene"  # the caption of ``constant``: true of every record, so it informs about none


@dataclass(frozen=True)
class Donors:
    """Public records whose captions ``shuffled`` and ``wrong`` use: nobody has to protect them."""

    corpus: Corpus
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.corpus.records):
            raise DataError(
                f"{len(self.captions)} captions were given for {len(self.corpus.records)} public "
                "records; make one for each"
            )


def arrange(
    control: Control, corpus: Corpus, own: Sequence[str] | None, donors: Donors | None, seed: int
) -> list[str] | None:
    """Return the caption of every record under one control; the seed fixes the choice.

    Only ``own`` looks at the records' own captions, only ``shuffled`` and ``wrong`` at ``donors``. A record never gets
    the caption of a donor that has its own key; if no donor is left, `DataError` is raised.

    Guarantees
    ----------
    A record's caption is a function of that record (image, key, labels), of the seed and of public records. If
    captions were exchanged among private records, one record would reach the gradient of another, and removing it
    would change two terms of the sum: a guarantee per record would then not hold. Hence the donors.
    """
    count = len(corpus.records)
    if control == "none":
        return None
    if control == "constant":
        return [CONSTANT] * count
    if control == "own":
        if own is None or len(own) != count:
            raise ConfigError(f"the control own needs one caption for each of {count} records")
        return list(own)
    if control not in CONTROLS:
        raise ConfigError(f"unknown control {control!r}; choose one of {', '.join(CONTROLS)}")
    if donors is None:
        raise ConfigError(f"the control {control} needs public records with captions")
    return _handed_out(control, corpus, donors, seed)


def _handed_out(control: Control, corpus: Corpus, donors: Donors, seed: int) -> list[str]:
    keys = np.array([record.key for record in donors.corpus.records], object)
    common = _in_common(corpus, donors.corpus) if control == "wrong" else None
    out = []
    for i, record in enumerate(corpus.records):
        fit = keys != record.key
        if common is not None and fit.any():
            fit &= common[i] == common[i][fit].min()
            if common[i][fit][0] >= 1:
                raise DataError(
                    f"all public records have the labels of record {i} of {corpus.name}, so no "
                    "caption is a wrong one; choose the control shuffled"
                )
        places = np.flatnonzero(fit)
        if not len(places):
            raise DataError("there is no other public record to take a caption from; add some")
        out.append(donors.captions[places[_draw(seed, control, record.key) % len(places)]])
    return out


def _in_common(corpus: Corpus, donors: Corpus) -> npt.NDArray[np.float32]:
    """Return the Jaccard overlap of label sets, shape [records, donors]; 1 where they are equal."""
    if donors.space != corpus.space:
        raise ConfigError(
            f"{corpus.name} and {donors.name} do not share their labels, so no caption can be "
            "called wrong; choose the control shuffled"
        )
    first, second = targets(corpus), targets(donors)
    both = first @ second.T
    either = first.sum(1)[:, None] + second.sum(1)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0).astype(np.float32)


def drop(captions: Sequence[str], corpus: Corpus, rate: float, seed: int) -> list[str]:
    """Replace each caption by an empty one with probability ``rate``, by the record's key and the seed alone."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"a dropout rate lies between 0 and 1, not at {rate:g}")
    limit = int(rate * 2**64)
    return [
        "" if _draw(seed, "dropout", record.key) < limit else caption
        for caption, record in zip(captions, corpus.records, strict=True)
    ]


def _draw(seed: int, purpose: str, key: str) -> int:
    """Return 64 bits that depend on seed, purpose and key only."""
    digest = hashlib.sha256(f"carefl-context/{purpose}/{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


# How the words of the published spaces go on: a line has a stem, which is followed by letters up to a word's end, and
# its words. Where a bare stem begins other words too ("sad" begins "saddle"), the endings are listed.
_LINES = (Path(__file__).parent / "prompt_files" / "label_stems.txt").read_text("utf-8").splitlines()
_STEMS = {word: stem for stem, *words in map(str.split, _LINES) for word in words}
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
