from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.rafdb import load_rafdb, numbered_subset, subset_root
from carefl_secure.data.records import BASIC, COMPOUND
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SilentReporter

BASIC_SIX = {"train_00001": 5, "train_00002": 1, "train_00003": 7, "test_0001": 4, "test_0002": 6, "test_0003": 1}


@pytest.mark.parametrize("spelled", ["patition", "partition"])
def test_the_published_layout_in_both_spellings(make: Any, spelled: str) -> None:
    corpora = load_rafdb(make.raf("basic", BASIC_SIX, spelled=spelled), "basic")
    assert list(corpora) == ["train", "test"]
    train = corpora["train"]
    assert train.name == "rafdb-basic-aligned/train"
    assert train.space is BASIC
    # Labels are counted from 1 on disk: 5 is Sadness.
    assert [BASIC.labels[r.labels[0]] for r in train.records] == ["Sadness", "Surprise", "Neutral"]
    assert train.records[0].key == "basic/train_00001.jpg"
    assert train.records[0].attributes == {"gender": "female", "race": "asian", "age_group": "70+"}
    assert train.image(0).size == (100, 100)
    assert corpora["test"].records[0].key == "basic/test_0001.jpg"


def test_boxes_and_landmarks_belong_to_the_original_image(make: Any) -> None:
    root = make.raf("basic", BASIC_SIX)
    aligned = load_rafdb(root, "basic")["train"]
    assert (aligned.records[0].box, dict(aligned.extras)) == (None, {})
    original = load_rafdb(root, "basic", view="original")["train"]
    assert original.name == "rafdb-basic-original/train"
    assert original.image(0).size == (60, 50)
    assert original.records[0].box == (10.5, 8.25, 40, 45.5)
    assert original.extras["landmarks"].shape == (3, 5, 2)
    assert original.extras["landmarks"][0, 3].tolist() == [21, 36]


def test_the_same_name_in_both_subsets_is_not_the_same_image(make: Any) -> None:
    make.raf("basic", {"train_00001": 1, "test_0001": 1})
    make.raf("compound", {"train_00001": 8, "test_0001": 11})
    basic, compound = (load_rafdb(make.root, s)["train"] for s in ("basic", "compound"))  # type: ignore[arg-type]
    assert basic.records[0].key != compound.records[0].key
    assert not np.array_equal(np.asarray(basic.image(0)), np.asarray(compound.image(0)))
    assert COMPOUND.labels[compound.records[0].labels[0]] == "Fearfully Surprised"


@pytest.mark.parametrize("subset", ["basic", "compound"])
def test_a_lone_subset_is_known_by_its_labels(make: Any, subset: Any) -> None:
    highest = len(BASIC.labels if subset == "basic" else COMPOUND.labels)
    make.raf("faces", {"train_00001": highest, "test_0001": 1})
    root = make.root / "faces"
    other = "compound" if subset == "basic" else "basic"
    assert subset_root(root, subset) == root
    assert subset_root(root, other) is None  # type: ignore[arg-type]
    assert len(load_rafdb(root, subset)["test"].records) == 1


@pytest.mark.parametrize("label", [0, 8])
def test_labels_out_of_range_are_refused(make: Any, label: int) -> None:
    make.raf("basic", {"train_00001": 1, "train_00002": label})
    with pytest.raises(LabelError, match=f"line 2: the label {label} is not one of 1 to 7"):
        load_rafdb(make.root, "basic")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("train_00002.jpg", "not an image name and a label"),
        ("train_00002.jpg five", "not an image name and a label"),
        ("train_00002.jpg 5 1", "not an image name and a label"),
        ("train_00001.jpg 5", "twice"),
        ("val_00001.jpg 5", "neither train_ nor test_"),
    ],
)
def test_malformed_lines_are_named(make: Any, line: str, error: str) -> None:
    make.raf("basic", {"train_00001": 1})
    path = make.root / "basic" / "EmoLabel" / "list_patition_label.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{error}"):
        load_rafdb(make.root, "basic")


def test_rafce_is_another_dataset(make: Any) -> None:
    make.raf("compound", {"train_00001": 1})
    make.text(make.root / "RAFCE_emolabel.txt", "0001.jpg 0")
    with pytest.raises(DataError, match="RAF-CE, another dataset"):
        load_rafdb(make.root, "compound")


@pytest.mark.parametrize("codes", [("1", "2"), ("3", "0", "0"), ("0", "0", "5"), ("male", "0", "0"), ("0", "0", "-1")])
def test_malformed_attributes_cost_the_attributes_and_not_the_face(make: Any, codes: tuple[str, ...]) -> None:
    make.raf("basic", {"train_00001": 1, "train_00002": 1, "train_00003": 1})
    make.attributes("basic", "train_00002", *codes)
    manual = make.root / "basic" / "Annotation" / "manual"
    (manual / "train_00003_manu_attri.txt").unlink()
    corpus = load_rafdb(make.root, "basic", view="original")["train"]
    assert [bool(r.attributes) for r in corpus.records] == [True, False, False]
    assert corpus.skipped.remarks == {"manual attributes malformed": 1, "no manual attributes": 1}
    assert np.isnan(corpus.extras["landmarks"]).all(axis=(1, 2)).tolist() == [False, True, True]


def test_unsure_is_a_group_of_its_own(make: Any) -> None:
    make.raf("basic", {"train_00001": 1})
    make.attributes("basic", "train_00001", "2", "0", "0")
    record = load_rafdb(make.root, "basic")["train"].records[0]
    assert record.attributes == {"gender": "unsure", "race": "caucasian", "age_group": "0-3"}


def test_boxes_outside_or_malformed(make: Any) -> None:
    make.raf("basic", {f"train_0000{k}": 1 for k in range(1, 5)})
    boxes = make.root / "basic" / "Annotation" / "boundingbox"
    make.text(boxes / "train_00001_boundingbox.txt", "-5 -5 70 70")
    make.text(boxes / "train_00002_boundingbox.txt", "70 5 80 20")
    make.text(boxes / "train_00003_boundingbox.txt", "1 2 3")
    corpus = load_rafdb(make.root, "basic", view="original")["train"]
    assert [r.box for r in corpus.records] == [(0, 0, 60, 50), None, (10.5, 8.25, 40, 45.5)]
    assert corpus.skipped.dropped == {"box outside the image or empty": 1}
    assert corpus.skipped.remarks == {"box cut to the image": 1, "no usable bounding box": 1}


def test_missing_and_truncated_images_are_counted(make: Any) -> None:
    root = make.raf("basic", BASIC_SIX)
    aligned = root / "basic" / "Image" / "aligned"
    (aligned / "train_00001_aligned.jpg").unlink()
    make.cut_off(aligned / "train_00002_aligned.jpg")
    corpora = load_rafdb(root, "basic")
    assert corpora["train"].skipped.dropped == {"image missing": 1}
    examine(corpora, SilentReporter())
    assert corpora["train"].skipped.dropped == {"image missing": 1, "image cannot be read": 1}


def test_images_that_are_still_packed(make: Any) -> None:
    root = make.raf("basic", {"train_00001": 1})
    image = root / "basic" / "Image"
    (image / "aligned" / "train_00001_aligned.jpg").unlink()
    (image / "aligned").rmdir()
    (image / "aligned.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack .*aligned\.zip"):
        load_rafdb(root, "basic", view="aligned")
    assert "original" in load_rafdb(root, "basic")["train"].name


def test_empty_lists_and_splits(make: Any) -> None:
    root = make.raf("basic", {"train_00001": 1})
    (root / "basic" / "Image" / "aligned" / "train_00001_aligned.jpg").unlink()
    with pytest.raises(DataError, match=r"train is empty \(left out: 1 x image missing\)"):
        load_rafdb(root, "basic")
    (root / "basic" / "EmoLabel" / "list_patition_label.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        load_rafdb(root, "basic")


@pytest.mark.parametrize("subset", ["basic", "compound"])
def test_numbered_folders_are_taken_by_number(make: Any, subset: Any) -> None:
    """Sorted as words, 10 and 11 would come right after 1."""
    classes = 7 if subset == "basic" else 11
    for split in ("train", "test"):
        for k in range(1, classes + 1):
            make.picture(make.root / split / str(k) / f"{split}_{k:05d}.jpg")
    assert numbered_subset(make.root) == subset
    corpus = load_rafdb(make.root, subset)["test"]
    assert [r.labels for r in corpus.records] == [(k,) for k in range(classes)]
    assert corpus.records[-1].key == f"{subset}/test/{classes}/test_{classes:05d}.jpg"


@pytest.mark.parametrize("names", [("0", "1"), ("1", "12"), ("1", "happy")])
def test_other_folders_are_not_taken_for_numbered_ones(make: Any, names: tuple[str, ...]) -> None:
    for name in names:
        make.picture(make.root / "train" / name / "a.jpg")
    assert numbered_subset(make.root) is None
