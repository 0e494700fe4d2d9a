"""Checks a corpus before training, and reports all findings at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from carefl_secure.data.checks.examine import UNREADABLE, examine, files_of, label_counts, restrict, skipped_of
from carefl_secure.data.corpora.base import ReadOptions
from carefl_secure.data.corpora.emotic.mat import mat_file
from carefl_secure.data.corpora.emotic.person import ONE_EACH
from carefl_secure.data.corpora.published_counts import Count, published_counts
from carefl_secure.data.deduplication.duplicates import Near, Shared, contradictions, find_shared, within
from carefl_secure.data.deduplication.image_hashes import ImageHash
from carefl_secure.data.open_corpus import detect, open_corpus
from carefl_secure.data.partition import partition
from carefl_secure.data.records import Corpus
from carefl_secure.errors import ConfigError
from carefl_secure.progress import SILENT, Reporter


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    name: str
    corpus: str  # corpus, view and split
    records: int
    images: int
    labelled: int  # records with at least one label
    labels: Mapping[str, int]
    skipped: Mapping[str, int]  # left out, by reason
    remarks: Mapping[str, int]  # kept with a remark, by reason
    examples: Mapping[str, Sequence[str]]  # a few records for each reason
    repeated: int  # images that equal an earlier one of the split
    nearly: int  # and those that nearly do


@dataclass(frozen=True)
class Report:
    """What :func:`check_corpus` found."""

    kind: str  # the layout
    root: str
    splits: Sequence[SplitReport]
    counts: Sequence[Count]  # numbers found, with the published ones
    shared: Sequence[Shared]  # what splits have in common, then clients
    missing: Sequence[str] = field(default_factory=tuple)  # what the corpus lacks
    faults: Sequence[str] = field(default_factory=tuple)  # errors
    notes: Sequence[str] = field(default_factory=tuple)  # no errors

    @property
    def sound(self) -> bool:
        """Whether nothing is missing or wrong; near duplicates are for a person to judge."""
        return not self.missing and not self.faults

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        whole = asdict(self) | {"sound": self.sound}
        return whole | {"counts": [{**vars(one), "same": one.same} for one in self.counts]}


_MISSING = ("image missing", "neither frames nor video", "no annotation")
_FAULTY = (
    "box outside the image or empty",
    "label in the list differs from the folder",
    "listed twice",
    "listed in an earlier split too",
)


def _split(name: str, corpus: Corpus, hashes: Sequence[ImageHash], alike: Near) -> SplitReport:
    skipped = skipped_of(corpus)
    dropped, remarks = dict(skipped.dropped), dict(skipped.remarks)
    repeated, nearly = within(hashes, alike)
    return SplitReport(
        name,
        corpus.name,
        len(corpus.records),
        len(hashes),
        sum(bool(record.labels) for record in corpus.records),
        label_counts(corpus),
        dropped,
        remarks,
        {reason: skipped.examples(reason) for reason in (*dropped, *remarks)},
        repeated,
        nearly,
    )


def _judge_splits(
    expected: Sequence[str], splits: Sequence[SplitReport], missing: list[str], faults: list[str]
) -> list[str]:
    notes = []
    present = {one.name.rsplit(" ", 1)[-1] for one in splits}
    missing += [f"the split {name}" for name in expected if name not in present]
    for one in splits:
        for reason, count in (*one.skipped.items(), *one.remarks.items()):
            text = f"{one.name}: {count} x {reason} (such as {', '.join(one.examples[reason])})"
            if reason in _MISSING:
                missing.append(text)
            elif reason in _FAULTY or reason == ONE_EACH or (expected and reason == UNREADABLE):
                faults.append(text)
            else:
                notes.append(text)
        if one.labelled:
            none = [label for label, count in one.labels.items() if not count]
            if none and expected:
                missing.append(f"{one.name}: records of {', '.join(none)}")
        if one.repeated or one.nearly:
            notes.append(f"{one.name}: {one.repeated} images repeat another exactly, {one.nearly} nearly")
    return notes


def _unseen_labels(splits: Sequence[SplitReport]) -> list[str]:
    train = next((one for one in splits if one.name == "train"), None)
    return [
        f"{one.name}: labels that train lacks: {', '.join(lacking)}"
        for one in splits
        if train is not None and (lacking := [k for k, n in one.labels.items() if n and not train.labels.get(k)])
    ]


def _judge_shared(shared: Sequence[Shared], faults: list[str], notes: list[str]) -> None:
    for one in shared:
        pair = f"{one.first} and {one.second} share"
        such = f" (such as {'; '.join(one.examples)})" if one.examples else ""
        if one.exact:
            text = f"{one.exact} images, {one.files} of them the same file"
            faults.append(f"{pair} {text}{such}")
        if one.subjects:
            faults.append(f"{pair} {one.subjects} subjects (persons or videos)")
        if one.near:
            notes.append(f"{pair} {one.near} nearly equal images{'' if one.exact else such}")


def check_corpus(
    path: Path,
    *,
    task: str = "auto",
    view: str = "auto",
    format: str = "auto",
    clients: int | None = None,
    column: str | None = None,
    reporter: Reporter = SILENT,
) -> Report:
    """Recognise a corpus, compare its counts with the published ones, and look for duplicates.

    Every image is read to its end once. RAF-DB is read with both subsets, as they may share images. ``task`` is a
    label space, or ``auto`` for all that are there. The view must show whole images: ``person`` and ``face`` are
    refused. With ``clients`` the first split is shared out, by ``column`` or at random, and these are compared too.

    Raises `DataError` or `LabelError` where the corpus is not recognised or too malformed to report on, `ConfigError`
    where the task, the view or the distribution makes no sense.
    """
    if view in ("person", "face"):
        raise ConfigError("a check looks at whole images; leave the view at auto")
    layout = detect(path, format)
    tasks = layout.tasks if task == "auto" and layout.tasks else (task,)
    opened: dict[str, Corpus] = {}
    prints: dict[str, Sequence[ImageHash]] = {}
    counts: list[Count] = []
    against: list[str] = []
    annotation = mat_file(layout.root) if layout.kind == "emotic-mat" else None
    old = annotation is not None and annotation.name.startswith("CVPR17")
    for one in tasks:
        how = ReadOptions(one, view, reporter=reporter)
        parts = examine(open_corpus(path, how, format=format), reporter)
        known = {name: whole for name, corpus in parts.corpora.items() if (whole := files_of(corpus)) is not None}
        counts += published_counts(layout.kind, one, known, release_2017=old)
        against += contradictions(parts)
        for name, corpus in parts.corpora.items():
            key = f"{one} {name}" if len(tasks) > 1 else name
            opened[key], prints[key] = corpus, parts.hashes[name]
    alike = Near(prints)
    splits = [_split(name, corpus, prints[name], alike) for name, corpus in opened.items()]
    missing: list[str] = []
    faults = [f"{one.what}: {one.found:,} where {one.published:,} are published" for one in counts if not one.same]
    notes = _judge_splits(layout.format.splits, splits, missing, faults)
    if against:
        such = "; ".join(against[:3])
        notes.append(f"contradictions: {len(against)} images equal another but have other labels (such as {such})")
    notes += _unseen_labels(splits)
    shared = find_shared(opened, prints, alike)
    if clients is not None:
        first = next(iter(opened))
        parts_of: dict[str, Corpus] = {}
        marks: dict[str, Sequence[ImageHash]] = {}
        drawn = partition(opened[first], clients, "column" if column else "iid", column=column)
        for k, share in enumerate(drawn):
            parts_of[f"client {k}"], marks[f"client {k}"] = restrict(opened[first], prints[first], share.tolist())
        shared += find_shared(parts_of, marks, alike)
    _judge_shared(shared, faults, notes)
    return Report(layout.kind, str(path), splits, counts, shared, missing, faults, notes)
