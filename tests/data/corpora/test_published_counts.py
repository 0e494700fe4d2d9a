from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from carefl_secure.data.corpora import published_counts as numbers
from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.published_counts import Count, published_counts
from carefl_secure.data.records import BASIC, CAERS, CEXPR, COMPOUND, EMOTIC, LabelSpace, Record


def corpus(
    space: LabelSpace,
    classes: Sequence[int],
    stated: Mapping[str, int] | None = None,
    attributes: Sequence[Mapping[str, str]] = (),
) -> FileCorpus:
    labels = [k for k, count in enumerate(classes) for _ in range(count)]
    notes = [*attributes, *({} for _ in range(len(labels) - len(attributes)))]
    records = [Record(str(i), (k,), None, notes[i]) for i, k in enumerate(labels)]
    return FileCorpus("x", space, records, (), stated=stated or {})


def test_the_published_classes_add_up_to_the_published_totals() -> None:
    for split, classes in numbers._RAF_BASIC.items():
        assert sum(classes) == numbers._RAF["basic"][split]
    for total, classes in numbers._CAERS_CLASSES.items():
        assert sum(classes) == total
    assert sum(numbers._EMOTIC_PERSONS.values()) == 34_320
    assert sum(numbers._EMOTIC_IMAGES.values()) == 23_571
    assert sum(numbers._EMOTIC_USABLE.values()) == 33_784
    for cells in numbers._RAF_TEST.values():
        assert sum(cells.values()) == numbers._RAF["basic"]["test"]


def test_a_whole_rafdb_agrees_and_one_image_less_does_not() -> None:
    parts = {split: corpus(BASIC, c) for split, c in numbers._RAF_BASIC.items()}
    counts = published_counts("rafdb", "basic", parts)
    assert len(counts) == 16
    assert all(count.same for count in counts)
    parts["test"] = corpus(BASIC, (328, *numbers._RAF_BASIC["test"][1:]))
    wrong = [c for c in published_counts("rafdb-folders", "basic", parts) if not c.same]
    assert [c.what for c in wrong] == ["basic test: images", "basic test: Surprise"]
    compound = {"train": corpus(COMPOUND, [3162]), "test": corpus(COMPOUND, [792])}
    assert all(c.same for c in published_counts("rafdb", "compound", compound))


@pytest.mark.parametrize(("moved", "same"), [(2, True), (3, False)])
def test_attribute_cells_may_be_off_by_two(moved: int, same: bool) -> None:
    cells = numbers._RAF_TEST["age_group"] | {"0-3": 329 - moved}
    notes = [{"age_group": value} for value, count in cells.items() for _ in range(count)]
    parts = {"test": corpus(BASIC, numbers._RAF_BASIC["test"], attributes=notes)}
    counts = {c.what: c for c in published_counts("rafdb", "basic", parts)}
    assert counts["basic test: age_group 0-3"].same is same
    assert counts["basic test: age_group 70+"].same


def test_emotic_names_annotated_and_usable_persons() -> None:
    classes = {"train": [23_266 - 25, *[1] * 25], "val": [3_315], "test": [7_203]}
    parts = {
        split: corpus(
            EMOTIC,
            classes[split],
            {"images": numbers._EMOTIC_IMAGES[split], "persons": numbers._EMOTIC_PERSONS[split]},
        )
        for split in classes
    }
    counts = published_counts("emotic-mat", "emotic", parts)
    assert all(count.same for count in counts)
    assert Count("test: persons annotated", 7_280, 7_280) in counts
    assert Count("test: persons usable", 7_203, 7_203) in counts
    tables = published_counts("emotic-table", "emotic", parts)
    assert [c.what for c in tables] == [
        "train: persons usable",
        "val: persons usable",
        "test: persons usable",
        "categories in use",
    ]
    assert published_counts("emotic-archive", "emotic", parts) == []
    old = published_counts("emotic-mat", "emotic", parts, release_2017=True)
    assert [c.published for c in old] == [18_313, 23_788]


@pytest.mark.parametrize(
    ("rows", "published"),
    [
        ({"train": 47_966, "test": 20_868}, [47_966, 20_868]),
        ({"train": 48_850, "val": 6_971, "test": 13_942}, [48_850, 6_971, 13_942]),
        ({"train": 48_816, "val": 6_965, "test": 13_925}, [48_816, 6_965, 13_925]),
        ({"train": 48_815, "val": 6_965, "test": 13_925}, [48_816, 6_965, 13_925]),
        ({"train": 5}, []),
        ({}, []),
    ],
)
def test_lists_of_caers_are_held_against_the_nearest_published_ones(
    rows: dict[str, int], published: list[int]
) -> None:
    names = rows or {"train": 0}
    parts = {s: corpus(CAERS, [3], {"rows": rows[s]} if s in rows else {}) for s in names}
    counts = [c for c in published_counts("caers", "caers", parts) if c.what.endswith("rows")]
    assert [c.published for c in counts] == published
    assert [c.found for c in counts] == (list(rows.values()) if published else [])


def test_cexpr_counts_videos_of_the_challenge_and_clips_of_the_folds() -> None:
    parts = {
        "train": corpus(CEXPR, [3], {"clips": 98}),
        "val": corpus(CEXPR, [3], {"clips": 26}),
        "test": FileCorpus("x", CEXPR, [Record("a", ())], (), stated={"clips": 56}),
    }
    counts = published_counts("cexpr", "cexpr", parts)
    assert [(c.found, c.published, c.same) for c in counts] == [(98, 98, True), (26, 27, False), (56, 56, True)]
