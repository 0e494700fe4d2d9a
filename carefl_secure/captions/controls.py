"""Which caption a record gets: its own, or that of a control that tests whether captions help.

If ``own`` beats ``none`` but ``shuffled`` does so too, the words helped without informing.

* ``none``: no caption.
* ``own``: the caption of the record's own image.
* ``shuffled``: the caption of some public record.
* ``wrong``: the caption of a public record whose labels have least in common with the record's.
* ``constant``: the same words for every record.

Any of them can lose some captions (:func:`drop`), as where a captioner failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Corpus, targets
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

    Parameters
    ----------
    own : sequence of str or None
        The records' own captions; only ``own`` looks at them.
    donors : Donors or None
        Only for ``shuffled`` and ``wrong``. A record never gets the caption of a donor that has its
        own key; if no donor is left, `DataError` is raised.

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
