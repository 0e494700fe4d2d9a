"""What a check of a corpus found, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from carefl_secure.data.corpora.published_counts import Count
from carefl_secure.data.deduplication.duplicates import Shared


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    ``corpus`` names corpus, view and split. ``labelled`` counts records with at least one label,
    ``labels`` each label. ``skipped`` and ``remarks`` count by reason what was left out, and what
    was kept with a remark; ``examples`` has a few records per reason. ``repeated`` and ``nearly``
    count images that repeat an earlier one of the split, exactly and nearly.
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

    ``kind`` is the layout, ``counts`` the numbers found with the published ones. ``shared`` says
    what splits have in common, then clients; ``missing`` what the corpus lacks. ``faults`` are
    errors, ``notes`` are not.
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
        whole = asdict(self) | {"sound": self.sound}
        return whole | {"counts": [{**vars(one), "same": one.same} for one in self.counts]}
