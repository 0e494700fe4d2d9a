"""``data.deduplicate``: equal images are refused across splits, dropped, or kept and counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.data.checks.check import check_corpus
from carefl_secure.data.checks.examine import Examined, examine
from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.data.deduplication.duplicates import contradictions, deduplicate, equal_records, held_twice
from carefl_secure.errors import DataError
from carefl_secure.progress import SilentReporter


@pytest.fixture
def found(make: Any) -> Examined:
    root: Path = make.root
    for split in ("train", "test"):
        for k in range(3):
            make.picture(root / split / "happy" / f"{split}{k}.png")
    shutil.copy(root / "train/happy/train0.png", root / "train/happy/again.png")
    shutil.copy(root / "train/happy/train1.png", root / "test/happy/shared.png")
    return examine(load_imagefolder(root), SilentReporter())


def test_refused_by_default_with_the_other_choices(found: Examined) -> None:
    with pytest.raises(DataError, match=r"1 images stand in two .*shared\.png.*=drop.*=keep"):
        deduplicate(found, "refuse")


def test_dropped_from_the_later_place(found: Examined) -> None:
    done = deduplicate(found, "drop")
    assert (done.repeated, done.shared) == (1, 1)
    assert {name: len(one.records) for name, one in done.found.corpora.items()} == {"train": 3, "test": 3}
    pixels = [mark.pixels for marks in done.found.hashes.values() for mark in marks]
    assert len(pixels) == len(set(pixels)) == 6
    for name, corpus in done.found.corpora.items():
        for mark in done.found.hashes[name]:
            assert [corpus.records[i].key for i in mark.records] == [mark.image]
    assert str(done) == "exact duplicates left out: 1 within a split, 1 across splits"


def test_kept_and_counted(found: Examined) -> None:
    done = deduplicate(found, "keep")
    assert {name: len(one.records) for name, one in done.found.corpora.items()} == {"train": 4, "test": 4}
    assert str(done) == "exact duplicates kept: 1 within a split, 1 across splits"


def test_equal_images_with_other_labels_are_counted_as_contradictions(make: Any) -> None:
    root: Path = make.root
    for k in range(3):
        make.picture(root / "train" / "happy" / f"{k}.png")
        make.picture(root / "train" / "sad" / f"{k}.png")
        make.picture(root / "test" / "sad" / f"{k}.png")
    shutil.copy(root / "train/happy/0.png", root / "train/happy/1.png")  # agrees
    shutil.copy(root / "train/happy/0.png", root / "train/sad/1.png")
    shutil.copy(root / "train/happy/0.png", root / "test/sad/1.png")
    found = examine(load_imagefolder(root), SilentReporter())
    assert contradictions(found) == ["train/happy/0.png = train/sad/1.png", "train/happy/0.png = test/sad/1.png"]
    assert str(deduplicate(found, "keep")).endswith("contradictions: 2 images equal another but have other labels")
    notes = check_corpus(root).notes
    assert [line for line in notes if line.startswith("contradictions: 2 images")]


def test_nothing_remains(make: Any) -> None:
    root: Path = make.root
    make.picture(root / "train" / "x" / "0.png")
    (root / "test" / "x").mkdir(parents=True)
    shutil.copy(root / "train/x/0.png", root / "test/x/0.png")
    with pytest.raises(DataError, match="nothing remains of test"):
        deduplicate(examine(load_imagefolder(root), SilentReporter()), "drop")


def test_equal_records_and_who_holds_them(found: Examined) -> None:
    marks = found.hashes["train"]
    (same,) = equal_records(marks)
    keys = [found.corpora["train"].records[i].key for i in same]
    assert keys == ["train/happy/again.png", "train/happy/train0.png"]
    assert held_twice([same], [[same[0]], [same[1]]]) == 1
    assert held_twice([same], [same, []]) == 0
