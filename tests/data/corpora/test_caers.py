from __future__ import annotations

from typing import Any

import pytest

from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.caers import load_caers, load_ncaers
from carefl_secure.data.open_corpus import open_corpus
from carefl_secure.data.records import CAERS
from carefl_secure.data.splits import groups
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SilentReporter


@pytest.mark.parametrize("base", ["CAER-S", "."])
def test_both_spellings_are_class_0(make: Any, base: str) -> None:
    corpora = load_caers(make.caers(base=base))
    assert list(corpora) == ["train", "test"]
    assert [r.key for r in corpora["train"].records][:2] == ["train/Angry/0001.png", "train/Disgust/0001.png"]
    assert corpora["test"].records[0].key == "test/Anger/0001.png"
    for corpus in corpora.values():
        assert [r.labels for r in corpus.records] == [(k,) for k in range(7)]
    assert corpora["train"].space is CAERS
    assert corpora["train"].image(0).size == (48, 40)


def lists(make: Any, **rows: list[str]) -> None:
    for split, lines in rows.items():
        make.text(make.root / f"{split}.txt", *lines)


@pytest.mark.parametrize("prefix", [True, False])
def test_val_lies_in_the_folder_test_and_is_no_part_of_test(make: Any, prefix: bool) -> None:
    make.caers(each=2)
    head = {"train": "train/" if prefix else "", "test": "test/" if prefix else ""}
    lists(
        make,
        train=[f"{head['train']}Anger/0001.png,0,5,5,20,30"],  # the folder says Angry
        val=[f"{head['test']}Happy/0001.png,3,5,5,20,30"],
        test=[f"{head['test']}Happy/0001.png,3,5,5,20,30", f"{head['test']}Happy/0002.png,3,5,5,20,30"],
    )
    corpora = load_caers(make.root)
    assert list(corpora) == ["train", "val", "test"]
    assert [r.key for r in corpora["train"].records] == ["train/Angry/0001.png"]
    assert [r.key for r in corpora["val"].records] == ["test/Happy/0001.png"]
    assert [r.key for r in corpora["test"].records] == ["test/Happy/0002.png"]
    assert corpora["test"].skipped.dropped == {"listed in an earlier split too": 1}
    assert corpora["train"].records[0].box == (5, 5, 20, 30)
    assert corpora["train"].stated == {"rows": 1}
    opened = open_corpus(make.root)["train"]
    assert isinstance(opened, FileCorpus)
    assert opened.skipped.dropped == {"image of another view, subset or list": 25}
    assert load_caers(make.root, view="face")["val"].image(0).size == (15, 25)


def test_without_a_list_for_test_the_rest_of_the_folder_is_test(make: Any) -> None:
    make.caers()
    lists(make, val=["Happy/0001.png,3,5,5,20,30"])
    corpora = load_caers(make.root)
    assert len(corpora["test"].records) == 6
    assert "test/Happy/0001.png" not in {r.key for r in corpora["test"].records}


def test_boxes_outside_are_cut_or_left_out_and_counted(make: Any) -> None:
    make.caers(each=2)
    lists(make, train=["Sad/0001.png,5,-5,-6,200,30", "Sad/0002.png,5,60,5,70,30"])
    corpus = load_caers(make.root)["train"]
    assert corpus.records[0].box == (0, 0, 48, 30)
    assert corpus.skipped.remarks["box cut to the image"] == 1
    assert corpus.skipped.dropped == {"box outside the image or empty": 1}


def test_rows_that_disagree_with_the_folder_are_counted(make: Any) -> None:
    make.caers()
    lists(
        make,
        train=[
            "Sad/0001.png,5,5,5,20,30",
            "Happy/0001.png,5,5,5,20,30",
            "Sad/0001.png,5,5,5,20,30",
            "Fear/0009.png,2,5,5,20,30",
        ],
    )
    assert load_caers(make.root)["train"].skipped.dropped == {
        "label in the list differs from the folder": 1,
        "listed twice": 1,
        "image missing": 1,
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("Sad/0001.png,5,5,5,20", "5 fields"),
        ("Sad/0001.png,5,a,5,20,30", "not numbers"),
        ("Sad/0001.png,7,5,5,20,30", "not one of 0 to 6"),
        ("Bored/0001.png,1,5,5,20,30", "not a class"),
        ("0001.png,1,5,5,20,30", "is not"),
        ("../../Sad/0001.png,5,5,5,20,30", "is not"),
        ("../Sad,5,5,5,20,30", "does not stay inside"),
    ],
)
def test_malformed_lines_are_named(make: Any, line: str, error: str) -> None:
    make.caers()
    lists(make, train=["Sad/0001.png,5,5,5,20,30", line])
    with pytest.raises(DataError, match=f"train.txt line 2.*{error}"):
        load_caers(make.root)


def test_an_unknown_class_folder_is_refused(make: Any) -> None:
    make.caers()
    make.picture(make.root / "CAER-S" / "train" / "Contempt" / "0001.png")
    with pytest.raises(LabelError, match="Contempt is not a class"):
        load_caers(make.root)


def test_lists_in_two_places(make: Any) -> None:
    make.caers()
    lists(make, train=["Sad/0001.png,5,5,5,20,30"])
    make.text(make.root / "CAERS-Annotation" / "test.txt", "test/Sad/0001.png,5,5,5,20,30")
    with pytest.raises(DataError, match="in 2 folders"):
        load_caers(make.root)


def test_a_truncated_frame_is_found_when_checked(make: Any) -> None:
    make.caers()
    make.cut_off(make.root / "CAER-S" / "test" / "Sad" / "0001.png")
    corpora = load_caers(make.root)
    assert corpora["test"].skipped.total == 0
    assert len(examine(corpora, SilentReporter()).corpora["test"].records) == 6
    assert corpora["test"].skipped.dropped == {"image cannot be read": 1}


def test_a_view_without_boxes(make: Any) -> None:
    with pytest.raises(DataError, match="7 x no face box"):
        load_caers(make.caers(), view="face")


def test_an_empty_list_is_an_empty_split(make: Any) -> None:
    make.caers()
    lists(make, val=[""])
    with pytest.raises(DataError, match="val is empty"):
        load_caers(make.root)


def test_known_clips_keep_frames_together(make: Any) -> None:
    make.caers()
    make.table(
        make.root / "clips.csv",
        [{"path": "CAER-S/train/Angry/0001.png", "clip": "show-1"}, {"path": "train/Sad/0001.png", "clip": "show-1"}],
    )
    train = load_caers(make.root)["train"]
    assert [r.subject for r in train.records].count("show-1") == 2
    assert sorted(map(len, groups(train))) == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("splits", [("train", "val", "test"), (".",)])
def test_ncaers(make: Any, splits: tuple[str, ...]) -> None:
    base = make.root / "NCAERS"
    for split in splits:
        for name, box in (("Anger", "5,5,20,30"), ("Happy", "0,0,0,0")):
            make.picture(base / "images" / split / name / "1.jpg")
            make.text(base / "crop" / split / name / "1.txt", box)
    corpora = load_ncaers(make.root)
    assert list(corpora) == (["all"] if splits == (".",) else ["train", "val", "test"])
    corpus = next(iter(corpora.values()))
    assert [r.labels for r in corpus.records] == [(0,), (3,)]
    assert [r.box for r in corpus.records] == [(5, 5, 20, 30), None]
    assert corpus.skipped.remarks == {"no face box": 1}
    faces = next(iter(load_ncaers(make.root, view="face").values()))
    assert len(faces.records) == 1
    assert faces.skipped.dropped == {"no face box": 1}
    make.text(base / "crop" / splits[0] / "Anger" / "1.txt", "5,5,20")
    with pytest.raises(DataError, match="3 numbers where 4"):
        load_ncaers(make.root)
