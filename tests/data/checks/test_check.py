from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from carefl_secure.data.checks.check import check_corpus
from carefl_secure.errors import ConfigError, DataError, LabelError


def mine(make: Any) -> Any:
    """Make an image folder in which nothing is wrong."""
    root = make.root / "mine"
    for split in ("train", "val", "test"):
        for name in ("glad", "sad"):
            for k in range(4):
                make.picture(root / split / name / f"{split}{k}.png", (90, 80))
    return root


def test_a_sound_corpus(make: Any) -> None:
    report = check_corpus(mine(make))
    assert report.sound
    assert (report.missing, report.faults) == ([], [])
    assert [s.name for s in report.splits] == ["train", "val", "test"]
    assert report.splits[0].labels == {"glad": 4, "sad": 4}
    assert [(s.exact, s.near, s.subjects) for s in report.shared] == [(0, 0, 0)] * 3
    assert json.loads(json.dumps(report.as_json()))["sound"] is True


def test_duplicates_between_splits_are_wrong_and_near_ones_are_noted(make: Any) -> None:
    root = mine(make)
    shutil.copy(root / "train" / "sad" / "train0.png", root / "test" / "glad" / "copy.png")
    report = check_corpus(root)
    assert not report.sound
    (fault,) = report.faults
    assert fault.startswith("train and test share 1 images, 1 of them the same file")
    assert "train/sad/train0.png = test/glad/copy.png" in fault


def test_duplicates_between_clients(make: Any) -> None:
    root = make.root / "mine"
    rows = []
    for k in range(6):
        make.picture(root / f"{k}.png")
        site = "north" if k < 3 else "south"
        rows.append({"file_name": f"{k}.png", "label": "x", "site": site})
    shutil.copy(root / "0.png", root / "5.png")
    make.text(root / "metadata.jsonl", *map(json.dumps, rows))
    assert check_corpus(root).sound  # within one split a repetition is only noted
    report = check_corpus(root, clients=2, column="site")
    (fault,) = report.faults
    assert fault.startswith("client 0 and client 1 share 1 images")
    (shared,) = report.shared
    assert (shared.exact, shared.files) == (1, 1)


def test_two_persons_of_one_image_on_two_clients(make: Any) -> None:
    root = make.root / "mine"
    make.picture(root / "a.png")
    rows = [{"file_name": "a.png", "label": "x", "site": s} for s in ("north", "south")]
    make.text(root / "metadata.jsonl", *map(json.dumps, rows))
    (shared,) = check_corpus(root, clients=2, column="site").shared
    assert shared.exact == 1


def test_a_person_on_two_clients(make: Any) -> None:
    root = make.root / "mine"
    rows = []
    for k, site in enumerate(("north", "south")):
        make.picture(root / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "label": "x", "site": site, "subject": "Ada"})
    make.text(root / "metadata.jsonl", *map(json.dumps, rows))
    report = check_corpus(root, clients=2, column="site")
    assert report.faults == ["client 0 and client 1 share 1 subjects (persons or videos)"]


def test_the_same_image_in_both_subsets_of_rafdb(make: Any) -> None:
    make.raf("basic", {"train_00001": 1, "test_0001": 2})
    make.raf("compound", {"train_00001": 11, "test_0001": 2})
    aligned = [make.root / s / "Image" / "aligned" for s in ("basic", "compound")]
    shutil.copy(aligned[0] / "train_00001_aligned.jpg", aligned[1] / "test_0001_aligned.jpg")
    report = check_corpus(make.root)
    assert [s.name for s in report.splits] == ["basic train", "basic test", "compound train", "compound test"]
    assert any(f.startswith("basic train and compound test share 1 image") for f in report.faults)
    assert "compound test: images: 1 where 792 are published" in report.faults
    assert "the split train" not in report.missing
    assert len(check_corpus(make.root, task="basic").splits) == 2


def test_what_is_missing_is_said(make: Any) -> None:
    make.raf("basic", {"train_00001": 1, "train_00002": 2})
    aligned = make.root / "basic" / "Image" / "aligned"
    (aligned / "train_00002_aligned.jpg").unlink()
    report = check_corpus(make.root)
    assert "the split test" in report.missing
    assert "train: 1 x image missing (such as basic/train_00002.jpg)" in report.missing
    assert any(line.startswith("train: records of Fear, Disgust") for line in report.missing)
    assert "basic train: images: 1 where 12,271 are published" in report.faults


def test_truncated_images_are_wrong_and_named(make: Any) -> None:
    root = make.whole_emotic()
    make.cut_off(root / "emotic" / "framesdb" / "images" / "b.jpg")
    report = check_corpus(root)
    line = "train: 2 x image cannot be read (such as framesdb/images/b.jpg"
    assert any(fault.startswith(line) for fault in report.faults)
    assert report.splits[0].skipped == {"image cannot be read": 2}


def test_a_box_outside_an_image_of_a_folder(make: Any) -> None:
    root = make.root / "mine"
    make.picture(root / "a.png")
    make.text(root / "metadata.jsonl", '{"file_name": "a.png", "label": "x", "box": [0, 0, 49, 9]}')
    with pytest.raises(DataError, match=r"a\.png does not lie inside the image of 48 x 40"):
        check_corpus(root)


def test_videos_shared_between_folds_are_wrong(make: Any) -> None:
    for clip in ("14_Sadly-Surprised_2", "14_Sadly-Surprised_3"):
        make.frames("C-EXPR-DB", clip, 1)
    make.folds(
        "C-EXPR-DB",
        train=["Sadly-Surprised/14_Sadly-Surprised_2,2,x"],
        val=["Sadly-Surprised/14_Sadly-Surprised_3,2,x"],
    )
    report = check_corpus(make.root)
    assert "train and val share 1 subjects (persons or videos)" in report.faults
    assert "train: clips: 1 where 98 are published" in report.faults


def test_an_unlabelled_test_is_no_fault(make: Any) -> None:
    make.frames("C-EXPR-DB-CHALLENGE", "01", 2)
    report = check_corpus(make.root)
    assert report.splits[0].labelled == 0
    assert any("not labelled: cannot be scored here" in note for note in report.notes)
    assert not any("records of" in line for line in report.missing)


def test_labels_that_were_lost_are_wrong(make: Any) -> None:
    make.emotic_table("train", *[{"Categorical_Labels": ["Fear"]}] * 2)
    assert any("this copy has lost labels" in fault for fault in check_corpus(make.root).faults)


def test_what_cannot_be_checked(make: Any) -> None:
    root = mine(make)
    with pytest.raises(ConfigError, match="whole images"):
        check_corpus(root, view="person")
    with pytest.raises(LabelError, match="glad"):
        check_corpus(root, task="basic")
    with pytest.raises(DataError, match="'site'"):
        check_corpus(root, clients=2, column="site")
    with pytest.raises(DataError, match="do not stand in a class folder"):
        check_corpus(make.root / "mine" / "train" / "sad")
