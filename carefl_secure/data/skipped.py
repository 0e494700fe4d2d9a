"""A count of what a corpus leaves out, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

_EXAMPLES = 3


class Skipped:
    """Counts what a loader left out, and what it kept with a remark, by reason.

    ``records kept + skipped.total`` is the number of records that the annotation names.
    """

    def __init__(self) -> None:
        self._dropped: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def drop(self, reason: str, what: str) -> None:
        """Count a record that is left out."""
        self._dropped[reason] += 1
        self._show(reason, what)

    def remark(self, reason: str, what: str, count: int = 1) -> None:
        """Count something odd that left no record out."""
        if count:
            self._remarks[reason] += count
            self._show(reason, what)

    def _show(self, reason: str, what: str) -> None:
        shown = self._examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(what)

    @property
    def total(self) -> int:
        """Number of records left out."""
        return self._dropped.total()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Records left out, by reason."""
        return dict(self._dropped)

    @property
    def remarks(self) -> Mapping[str, int]:
        """Things to know about what was kept, by kind."""
        return dict(self._remarks)

    def examples(self, reason: str) -> Sequence[str]:
        """Return the first few records or files that a reason was given for."""
        return tuple(self._examples.get(reason, ()))

    def merge(self, other: Skipped) -> None:
        """Add another count to this one."""
        self._dropped += other._dropped
        self._remarks += other._remarks
        for reason, shown in other._examples.items():
            for what in shown:
                self._show(reason, what)
