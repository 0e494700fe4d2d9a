"""What a check of a corpus found, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from carefl_secure.data.corpora.published_counts import Count
from carefl_secure.data.deduplication.duplicates import Shared

__all__ = ["Report", "SplitReport"]


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Parameters
    ----------
    corpus : str
        Corpus, view and split.
    records, images, labelled : int
        Records, different images, records with at least one label.
    labels : mapping of str to int
        How often each label stands.
    skipped, remarks : mapping of str to int
        What was left out, and what was kept with a remark, by reason.
    examples : mapping of str to sequence of str
        A few records per reason.
    repeated, nearly : int
        Images that repeat an earlier one of the split, exactly and nearly.
    """

    name: str
    corpus: str
    records: int
    images: int
    labelled: int
    labels: Mapping[str, int]
    skipped: Mapping[str, int]
    remarks: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]
    repeated: int
    nearly: int


@dataclass(frozen=True)
class Report:
    """What :func:`carefl_secure.data.checks.check.check_corpus` found.

    Parameters
    ----------
    kind : str
        The layout.
    root : str
        The folder.
    counts : sequence of Count
        Numbers found, with the published ones.
    shared : sequence of Shared
        What splits have in common, and then what clients have.
    missing : sequence of str
        What the corpus should have and has not.
    faults : sequence of str
        What is wrong.
    notes : sequence of str
        What is good to know.
    """

    kind: str
    root: str
    splits: Sequence[SplitReport]
    counts: Sequence[Count]
    shared: Sequence[Shared]
    missing: Sequence[str] = field(default_factory=tuple)
    faults: Sequence[str] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def sound(self) -> bool:
        """Whether nothing is missing or wrong; near duplicates are for a person to judge."""
        return not self.missing and not self.faults

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "kind": self.kind,
            "root": self.root,
            "sound": self.sound,
            "splits": [
                {**vars(one), "examples": {k: list(v) for k, v in one.examples.items()}}
                for one in self.splits
            ],
            "counts": [{**vars(one), "same": one.same} for one in self.counts],
            "shared": [{**vars(one), "examples": list(one.examples)} for one in self.shared],
            "missing": list(self.missing),
            "faults": list(self.faults),
            "notes": list(self.notes),
        }
