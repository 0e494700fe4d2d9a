"""The published figures of each corpus, to compare a copy with.

Sources: EMOTIC, arXiv 2003.13401, the public annotation file and the public converter; CAER-S, the
lists of github.com/larrylu0426/CAERS-Annotation, of github.com/ndkhanh360/CAER and of
github.com/TaqiyudinMiftah/risetv2; RAF-DB, its own readme; C-EXPR-DB, arXiv 2407.03835 and the
folds of github.com/sbelharbi/feature-vs-text-compound-emotion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carefl_secure.data.corpora.base import FileCorpus


@dataclass(frozen=True)
class Count:
    """A number found, and the published one, which may itself be off by ``slack``."""

    what: str
    found: int
    published: int
    slack: int = 0

    @property
    def same(self) -> bool:
        """Whether the two agree."""
        return abs(self.found - self.published) <= self.slack


_EMOTIC_IMAGES = {"train": 17_077, "val": 2_088, "test": 4_406}
_EMOTIC_PERSONS = {"train": 23_706, "val": 3_334, "test": 7_280}
_EMOTIC_USABLE = {"train": 23_266, "val": 3_315, "test": 7_203}
_CAERS_LISTS = (
    {"train": 47_966, "test": 20_868},
    {"train": 48_850, "val": 6_971, "test": 13_942},
    {"train": 48_816, "val": 6_965, "test": 13_925},
)
_CAERS_CLASSES = {
    47_966: (6_856, 6_890, 6_873, 6_814, 6_799, 6_910, 6_824),
    20_868: (2_988, 2_980, 2_972, 2_990, 2_985, 2_983, 2_970),
    48_816: (6_975, 6_965, 6_977, 6_974, 6_979, 6_973, 6_973),
    6_965: (994, 1_020, 1_029, 975, 984, 944, 1_019),
    13_925: (1_988, 1_962, 1_951, 2_019, 2_003, 2_041, 1_961),
}
_RAF = {"basic": {"train": 12_271, "test": 3_068}, "compound": {"train": 3_162, "test": 792}}
_RAF_BASIC = {"train": (1_290, 281, 717, 4_772, 1_982, 705, 2_524), "test": (329, 74, 160, 1_185, 478, 162, 680)}
_RAF_TEST = {
    "gender": {"male": 1_249, "female": 1_620, "unsure": 199},
    "race": {"caucasian": 2_351, "african_american": 234, "asian": 483},
    "age_group": {"0-3": 329, "4-19": 486, "20-39": 1_662, "40-69": 502, "70+": 89},
}
_CEXPR_VIDEOS = 56
_CEXPR_CLIPS = {"train": 98, "val": 27}


def _classes(split: str, corpus: FileCorpus, published: Sequence[int]) -> list[Count]:
    found = Counter(label for record in corpus.records for label in record.labels)
    return [
        Count(f"{split}: {name}", found[k], number)
        for k, (name, number) in enumerate(zip(corpus.space.labels, published, strict=True))
    ]


def _emotic(kind: str, corpora: Mapping[str, FileCorpus]) -> list[Count]:
    counts = []
    if kind == "emotic-mat":
        for split, corpus in corpora.items():
            stated = corpus.stated
            counts += [
                Count(f"{split}: images annotated", stated["images"], _EMOTIC_IMAGES[split]),
                Count(f"{split}: persons annotated", stated["persons"], _EMOTIC_PERSONS[split]),
            ]
    counts += [
        Count(f"{split}: persons usable", len(corpus.records), _EMOTIC_USABLE[split])
        for split, corpus in corpora.items()
    ]
    names = {label for one in corpora.values() for r in one.records for label in r.labels}
    return [*counts, Count("categories in use", len(names), 26)]


def _emotic_2017(corpora: Mapping[str, FileCorpus]) -> list[Count]:
    return [
        Count(f"all splits: {what} annotated", sum(c.stated[what] for c in corpora.values()), n)
        for what, n in (("images", 18_313), ("persons", 23_788))
    ]


def _caers(corpora: Mapping[str, FileCorpus]) -> list[Count]:
    rows = {name: one.stated["rows"] for name, one in corpora.items() if "rows" in one.stated}
    fitting = [lists for lists in _CAERS_LISTS if lists.keys() == rows.keys()]
    if not fitting:
        return []  # the release itself came without published counts
    best = min(fitting, key=lambda lists: sum(abs(lists[s] - rows[s]) for s in rows))
    counts = []
    for split, number in best.items():
        counts.append(Count(f"{split}: rows", rows[split], number))
        if number in _CAERS_CLASSES:
            counts += _classes(split, corpora[split], _CAERS_CLASSES[number])
    return counts


def _rafdb(subset: str, corpora: Mapping[str, FileCorpus]) -> list[Count]:
    counts = []
    for split, corpus in corpora.items():
        counts.append(Count(f"{subset} {split}: images", len(corpus.records), _RAF[subset][split]))
        if subset == "basic":
            counts += _classes(f"basic {split}", corpus, _RAF_BASIC[split])
    test = corpora.get("test")
    if subset == "basic" and test and any(record.attributes for record in test.records):
        for name, cells in _RAF_TEST.items():
            found = Counter(record.attributes.get(name) for record in test.records)
            # The published cells were counted by a script and corrected by hand.
            counts += [
                Count(f"basic test: {name} {value}", found[value], number, 2) for value, number in cells.items()
            ]
    return counts


def _cexpr(corpora: Mapping[str, FileCorpus]) -> list[Count]:
    counts = []
    for split, corpus in corpora.items():
        if not any(record.labels for record in corpus.records):
            counts.append(Count(f"{split}: videos of the challenge", corpus.stated["clips"], _CEXPR_VIDEOS))
        elif split in _CEXPR_CLIPS:
            counts.append(Count(f"{split}: clips", corpus.stated["clips"], _CEXPR_CLIPS[split]))
    return counts


def published_counts(
    kind: str, task: str, corpora: Mapping[str, FileCorpus], *, release_2017: bool = False
) -> list[Count]:
    """Return the published counts with those found, by layout ``kind`` and ``task`` (of RAF-DB, the subset)."""
    if kind == "emotic-mat" and release_2017:
        return _emotic_2017(corpora)
    if kind in ("emotic-mat", "emotic-table"):
        return _emotic(kind, corpora)
    if kind == "caers":
        return _caers(corpora)
    if kind.startswith("rafdb"):
        return _rafdb(task, corpora)
    return _cexpr(corpora) if kind == "cexpr" else []
