from __future__ import annotations

import shutil
from typing import Any

import pytest
from PIL import Image

from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.data.deduplication.duplicates import find_shared, within
from carefl_secure.data.deduplication.image_hashes import hash_images
from carefl_secure.data.records import LabelSpace

SPACE = LabelSpace("x", ("x",), multi=False)


def folder(make: Any, name: str, count: int) -> FileCorpus:
    for k in range(count):
        make.picture(make.root / name / "x" / f"{name}{k}.png", (90, 80))
    return load_imagefolder(make.root / name, SPACE)["all"]


def prints(parts: Any) -> Any:
    return {name: hash_images(corpus) for name, corpus in parts.items()}


@pytest.fixture
def parts(make: Any) -> dict[str, FileCorpus]:
    """Make three splits: val and test hold copies of train, and test a near copy of val."""
    for name, count in (("train", 4), ("val", 3), ("test", 4)):
        folder(make, name, count)
    at = {name: make.root / name / "x" for name in ("train", "val", "test")}
    shutil.copy(at["train"] / "train0.png", at["val"] / "copy.png")
    Image.open(at["train"] / "train1.png").save(at["test"] / "other.bmp")
    Image.open(at["train"] / "train2.png").save(at["test"] / "near.jpg", quality=60)
    Image.open(at["val"] / "val0.png").resize((60, 50)).save(at["test"] / "nearval.png")
    shutil.copy(at["train"] / "train3.png", at["train"] / "train3again.png")
    return {name: load_imagefolder(make.root / name, SPACE)["all"] for name in at}


def test_what_splits_share_is_found(parts: Any) -> None:
    found = {(s.first, s.second): s for s in find_shared(parts, prints(parts))}
    one = found["train", "val"]
    assert (one.exact, one.files, one.near) == (1, 1, 0)
    assert one.examples == ("x/train0.png = x/copy.png",)
    two = found["train", "test"]
    assert (two.exact, two.files, two.near) == (1, 0, 1)
    assert two.examples == ("x/train1.png = x/other.bmp", "x/train2.png ~ x/near.jpg")
    three = found["val", "test"]
    assert (three.exact, three.near) == (0, 1)


def test_repetitions_inside_a_part(parts: Any) -> None:
    marks = prints(parts)
    assert within(marks["train"]) == (1, 0)
    assert within(marks["val"]) == (0, 0)
    assert within([*marks["train"], *marks["test"]]) == (2, 1)


def test_subjects_of_two_parts_are_found(make: Any) -> None:
    for name in ("train", "test"):
        rows = []
        for k in range(3):
            make.picture(make.root / name / f"{k}.png")
            who = "both" if k == 0 else f"{name}{k}"
            rows.append(f'{{"file_name": "{k}.png", "label": "x", "subject": "{who}"}}')
        make.text(make.root / name / "metadata.jsonl", *rows)
    parts = {n: load_imagefolder(make.root / n, SPACE)["all"] for n in ("train", "test")}
    (shared,) = find_shared(parts, prints(parts))
    assert (shared.exact, shared.near, shared.subjects) == (0, 0, 1)


def test_flat_pictures_are_equal_or_nothing(make: Any) -> None:
    (make.root / "train" / "x").mkdir(parents=True)
    for name, colour in (("a", "black"), ("b", "white"), ("c", "black")):
        Image.new("RGB", (20, 20), colour).save(make.root / "train" / "x" / f"{name}.png")
    assert within(hash_images(load_imagefolder(make.root / "train", SPACE)["all"])) == (1, 0)
