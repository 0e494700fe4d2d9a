"""Reads every image of a corpus, for training and ``data check`` alike; leaves out unreadable ones, up to a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace

from carefl_secure.data.corpora.base import FileCorpus, fit_box
from carefl_secure.data.deduplication.image_hashes import ImageHash, hash_images
from carefl_secure.data.records import Corpus, Skipped
from carefl_secure.data.splits import Subset
from carefl_secure.errors import DataError
from carefl_secure.progress import Reporter

MOST_UNREADABLE = 0.05  # the largest share of a split's images that may be unreadable; one image always may
UNREADABLE = "image cannot be read"


@dataclass(frozen=True)
class Examined:
    """The readable records of each split, and the hashes of their images."""

    corpora: Mapping[str, Corpus]
    hashes: Mapping[str, Sequence[ImageHash]]


def files_of(corpus: Corpus) -> FileCorpus | None:
    """Return a corpus of files as its annotation has it, unreadable images included."""
    while isinstance(corpus, Subset):
        corpus = corpus.corpus
    return corpus if isinstance(corpus, FileCorpus) else None


def skipped_of(corpus: Corpus) -> Skipped:
    """Return the count of what a corpus leaves out."""
    files = files_of(corpus)
    return Skipped() if files is None else files.skipped


def label_counts(corpus: Corpus) -> dict[str, int]:
    """Return how many records carry each label, in the order of the label space."""
    counts = dict.fromkeys(corpus.space.labels, 0)
    for record in corpus.records:
        for label in record.labels:
            counts[corpus.space.labels[label]] += 1
    return counts


def restrict(corpus: Corpus, hashes: Sequence[ImageHash], keep: Sequence[int]) -> tuple[Corpus, list[ImageHash]]:
    """Return some records of a corpus, with the hashes of their images."""
    if len(keep) == len(corpus.records):
        return corpus, list(hashes)
    place = {index: at for at, index in enumerate(keep)}
    kept = [
        replace(mark, records=tuple(place[i] for i in mark.records if i in place))
        for mark in hashes
        if any(i in place for i in mark.records)
    ]
    return Subset(corpus, tuple(keep)), kept


def _readable(name: str, corpus: Corpus, hashes: Sequence[ImageHash]) -> list[int]:
    broken = [mark for mark in hashes if mark.fault]
    if len(broken) > max(1, MOST_UNREADABLE * len(hashes)) or len(broken) == len(hashes):
        raise DataError(
            f"{len(broken)} of {len(hashes)} images of {name} cannot be read; one image may be, or "
            f"{MOST_UNREADABLE:.0%} of them. The first: {broken[0].fault if broken else 'none'}"
        )
    lost = {index for mark in broken for index in mark.records}
    for index in sorted(lost):
        skipped_of(corpus).drop(UNREADABLE, corpus.records[index].key)
    return [index for index in range(len(corpus.records)) if index not in lost]


def examine(corpora: Mapping[str, Corpus], reporter: Reporter) -> Examined:
    """Leave out unreadable images; `DataError` for more than :data:`MOST_UNREADABLE`, or a box outside its image."""
    found: dict[str, Corpus] = {}
    marks: dict[str, Sequence[ImageHash]] = {}
    for name, corpus in corpora.items():
        hashes = hash_images(corpus, reporter, f"reading the images of {name}")
        keep = _readable(name, corpus, hashes)
        for mark in hashes:
            for record in (corpus.records[index] for index in mark.records):
                if mark.fault is None and record.box and fit_box(record.box, mark.size) != record.box:
                    raise DataError(
                        f"the box {list(record.box)} of {record.key} does not lie inside the image of "
                        f"{mark.size[0]} x {mark.size[1]} pixels; boxes are [left, top, right, bottom]"
                    )
        found[name], marks[name] = restrict(corpus, hashes, keep)
    return Examined(found, marks)


def counts_line(parts: Mapping[str, Corpus], skipped: Skipped, source: str) -> str:
    """Return one line: records, splits, classes with counts, skipped files by reason."""
    total: dict[str, int] = {}
    for corpus in parts.values():
        for label, count in label_counts(corpus).items():
            total[label] = total.get(label, 0) + count
    records = [record for corpus in parts.values() for record in corpus.records]
    none = sum(not record.labels for record in records)
    classes = ", ".join(f"{label} {count}" for label, count in total.items())
    splits = ", ".join(f"{name} {len(corpus.records)}" for name, corpus in parts.items())
    left = ", ".join(f"{count} x {reason}" for reason, count in skipped.dropped.items())
    return (
        f"data: {source}: {len(records)} records ({splits}); classes: {classes}"
        + (f"; {none} without a label, which are negatives of every class" if none else "")
        + f"; skipped: {left or 'nothing'}"
    )


def warnings(private: Corpus, test: Corpus, shares: Sequence[Sized]) -> list[str]:
    """Return what weakens a result or a promise: rare labels, and labels that are only scored."""
    known, scored = label_counts(private), label_counts(test)
    rare = [f"{label} ({n})" for label, n in known.items() if 0 < n < len(shares)]
    unseen = [label for label, n in scored.items() if n and not known.get(label)]
    persons = {r.subject for r in private.records} & {r.subject for r in test.records} - {None}
    out = []
    if persons:
        out.append(
            f"warning: {len(persons)} subjects of private records are in the test split too, which no noise covers"
        )
    if sum(map(bool, known.values())) == 1:
        out.append("warning: all private records carry one and the same label")
    if rare:
        out.append(
            f"warning: fewer private records than the {len(shares)} clients have the label "
            f"{', '.join(rare)}: some clients hold none"
        )
    if unseen:
        out.append(f"warning: the test split has labels that no private record has: {', '.join(unseen)}")
    return out
