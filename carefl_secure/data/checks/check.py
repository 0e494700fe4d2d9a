"""Checks a corpus before anything is trained on it, and says everything that was found at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from carefl_secure.data.checks.report import Report, SplitReport
from carefl_secure.data.corpora.base import PublishedCorpus
from carefl_secure.data.corpora.emotic.mat import mat_file
from carefl_secure.data.corpora.emotic.person import ONE_EACH
from carefl_secure.data.corpora.published_counts import Count, published_counts
from carefl_secure.data.deduplication.duplicates import Shared, find_shared, within
from carefl_secure.data.deduplication.image_hashes import Print, fingerprints
from carefl_secure.data.open_corpus import Layout, open_corpus, recognise
from carefl_secure.data.partition import partition
from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError
from carefl_secure.progress import Reporter, SilentReporter

__all__ = ["check_corpus"]

_MISSING = ("image missing", "neither frames nor video", "no annotation")
_FAULTY = (
    "image cannot be read",
    "box outside the image or empty",
    "label in the list differs from the folder",
    "listed twice",
    "listed in an earlier split too",
)
_EXPECTED = {
    "emotic-mat": ("train", "val", "test"),
    "emotic-table": ("train", "val", "test"),
    "emotic-archive": ("train", "val", "test"),
    "caers": ("train", "test"),
    "ncaers": ("train", "val", "test"),
    "rafdb": ("train", "test"),
    "rafdb-folders": ("train", "test"),
}


def _split(name: str, corpus: Corpus, prints: Sequence[Print]) -> SplitReport:
    found = Counter(label for record in corpus.records for label in record.labels)
    dropped: dict[str, int] = {}
    remarks: dict[str, int] = {}
    examples: dict[str, Sequence[str]] = {}
    if isinstance(corpus, PublishedCorpus):
        dropped, remarks = dict(corpus.skipped.dropped), dict(corpus.skipped.remarks)
        examples = {r: corpus.skipped.examples(r) for r in (*dropped, *remarks)}
    broken = [mark for mark in prints if mark.fault]
    if broken:
        dropped["image cannot be read"] = sum(len(mark.records) for mark in broken)
        examples["image cannot be read"] = tuple(mark.image for mark in broken[:3])
    outside = [
        corpus.records[index].key
        for mark in prints
        for index in mark.records
        if mark.fault is None and _outside(corpus.records[index].box, mark.size)
    ]
    if outside:
        dropped["box outside the image or empty"] = len(outside)
        examples["box outside the image or empty"] = tuple(outside[:3])
    repeated, nearly = within(prints)
    return SplitReport(
        name,
        corpus.name,
        len(corpus.records),
        len(prints),
        sum(bool(record.labels) for record in corpus.records),
        {label: found[k] for k, label in enumerate(corpus.space.labels)},
        dropped,
        remarks,
        examples,
        repeated,
        nearly,
    )


def _outside(box: tuple[float, float, float, float] | None, size: tuple[int, int]) -> bool:
    if box is None:
        return False
    left, top, right, bottom = box
    return left < 0 or top < 0 or right > size[0] or bottom > size[1]


def _clients(
    corpus: Corpus, prints: Sequence[Print], clients: int, column: str | None
) -> tuple[dict[str, Corpus], dict[str, list[Print]]]:
    """Share a split out as training would, and give every client its own fingerprints."""
    shares = partition(corpus, clients, "column" if column else "iid", column=column)
    parts: dict[str, Corpus] = {}
    marks: dict[str, list[Print]] = {}
    for k, share in enumerate(shares):
        place = {index: at for at, index in enumerate(share.tolist())}
        parts[f"client {k}"] = Subset(corpus, tuple(place))
        marks[f"client {k}"] = [
            replace(mark, records=tuple(place[i] for i in mark.records if i in place))
            for mark in prints
            if any(i in place for i in mark.records)
        ]
    return parts, marks


def _judge_splits(
    kind: str, splits: Sequence[SplitReport], missing: list[str], faults: list[str]
) -> list[str]:
    notes = []
    present = {one.name.rsplit(" ", 1)[-1] for one in splits}
    missing += [f"the split {name}" for name in _EXPECTED.get(kind, ()) if name not in present]
    for one in splits:
        for reason, count in (*one.skipped.items(), *one.remarks.items()):
            text = f"{one.name}: {count} x {reason} (such as {', '.join(one.examples[reason])})"
            if reason in _MISSING:
                missing.append(text)
            elif reason in _FAULTY or reason == ONE_EACH:
                faults.append(text)
            else:
                notes.append(text)
        if one.labelled:
            none = [label for label, count in one.labels.items() if not count]
            if none and kind in _EXPECTED:
                missing.append(f"{one.name}: records of {', '.join(none)}")
        if one.repeated or one.nearly:
            notes.append(
                f"{one.name}: {one.repeated} pictures repeat another exactly, {one.nearly} nearly"
            )
    return notes


def _judge_shared(shared: Sequence[Shared], faults: list[str], notes: list[str]) -> None:
    for one in shared:
        pair = f"{one.first} and {one.second} share"
        such = f" (such as {'; '.join(one.examples)})" if one.examples else ""
        if one.exact:
            text = f"{one.exact} pictures, {one.files} of them the same file"
            faults.append(f"{pair} {text}{such}")
        if one.subjects:
            faults.append(f"{pair} {one.subjects} subjects (persons or videos)")
        if one.near:
            notes.append(f"{pair} {one.near} nearly equal pictures{'' if one.exact else such}")


def check_corpus(
    path: Path,
    *,
    task: str = "auto",
    view: str = "auto",
    clients: int | None = None,
    column: str | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Recognise a corpus, hold its counts against the published ones, and look for duplicates.

    Every image is read to its end once. Of RAF-DB both subsets are read where both are there,
    since they may share images.

    Parameters
    ----------
    path : Path
        The folder.
    task : str
        The label space; ``auto`` takes all that are there.
    view : str
        As in :func:`carefl_secure.data.open_corpus.open_corpus`; only whole images can be checked,
        so ``person`` and ``face`` are refused.
    clients : int, optional
        Share the first split out to so many clients and compare these too.
    column : str, optional
        The attribute, or ``subject``, to share it out by; otherwise at random.
    reporter : Reporter, optional

    Returns
    -------
    Report

    Raises
    ------
    DataError
        If the corpus is not recognised, or so malformed that nothing can be said about it.
    LabelError
        If a label is not in the space.
    ConfigError
        If the task, the view or the sharing makes no sense.
    """
    if view in ("person", "face"):
        raise ConfigError("a check looks at whole images; leave the view at auto")
    reporter = reporter or SilentReporter()
    layout = recognise(path)
    tasks = layout.tasks if task == "auto" and layout.tasks else (task,)
    corpora: dict[str, Corpus] = {}
    counts: list[Count] = []
    for one in tasks:
        opened = open_corpus(path, task=one, view=view, reporter=reporter)
        corpora |= {f"{one} {name}" if len(tasks) > 1 else name: c for name, c in opened.items()}
        counts += _counts(layout, one, opened)
    prints = {
        name: fingerprints(corpus, reporter, f"reading the images of {name}")
        for name, corpus in corpora.items()
    }
    splits = [_split(name, corpus, prints[name]) for name, corpus in corpora.items()]
    missing: list[str] = []
    faults = [
        f"{one.what}: {one.found:,} where {one.published:,} are published"
        for one in counts
        if not one.same
    ]
    notes = _judge_splits(layout.kind, splits, missing, faults)
    shared = find_shared(corpora, prints)
    if clients is not None:
        first = next(iter(corpora))
        parts, marks = _clients(corpora[first], prints[first], clients, column)
        shared += find_shared(parts, marks)
    _judge_shared(shared, faults, notes)
    return Report(layout.kind, str(path), splits, counts, shared, missing, faults, notes)


def _counts(layout: Layout, task: str, opened: Mapping[str, Corpus]) -> list[Count]:
    known = {name: one for name, one in opened.items() if isinstance(one, PublishedCorpus)}
    annotation = mat_file(layout.root) if layout.kind == "emotic-mat" else None
    old = annotation is not None and annotation.name.startswith("CVPR17")
    return published_counts(layout.kind, task, known, release_2017=old)
