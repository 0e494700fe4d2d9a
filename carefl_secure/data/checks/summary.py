"""The line that is shown before anything is trained: what is used, and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from carefl_secure.data.checks.examine import label_counts
from carefl_secure.data.records import Corpus
from carefl_secure.data.skipped import Skipped


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
