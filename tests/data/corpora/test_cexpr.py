from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.cexpr import load_cexpr, video_names
from carefl_secure.data.corpora.cexpr_lists import Segment, labels_at, read_annotation, read_fold
from carefl_secure.data.records import CEXPR, targets
from carefl_secure.data.splits import groups
from carefl_secure.errors import ConfigError, DataError, LabelError
from carefl_secure.progress import SilentReporter

CHALLENGE, LABELLED = "C-EXPR-DB-CHALLENGE", "C-EXPR-DB"
HEADER = "Begin Time - hh:mm:ss.ms,End Time - hh:mm:ss.ms," + ",".join((*CEXPR.labels, "Other"))


def labelled(make: Any) -> Any:
    for clip in ("24_Sadly-Fearful_0", "24_Sadly-Fearful_1", "04_Happily-Surprised_2"):
        make.frames(LABELLED, clip, 2)
    val = ["Happily-Surprised/04_Happily-Surprised_2,1,Hes like, whats going on?"]
    make.folds(
        LABELLED,
        train=[
            "Sadly-Fearful/24_Sadly-Fearful_0,5,No, no, just wait a minute.",
            "Sadly-Fearful/24_Sadly-Fearful_1,5,",
            "Other/33_Other_0,7,because her bathroom, is full of plastic",
        ],
        val=val,
        test=val,
    )
    return make.root


def test_the_challenge_has_no_labels_and_gets_none(make: Any) -> None:
    for video in ("01", "02"):
        make.frames(CHALLENGE, video, 2)
    make.folds(CHALLENGE, test=["videos/01,0,Nobody is speaking.", "videos/02,0,Oh my God, yeah"])
    corpora = load_cexpr(make.root)
    assert list(corpora) == ["test"]
    test = corpora["test"]
    assert test.space is CEXPR
    assert [r.labels for r in test.records] == [()] * 4
    assert targets(test).sum() == 0
    assert test.skipped.remarks == {"not labelled: cannot be scored here": 1}
    assert test.stated == {"clips": 2}
    assert [r.attributes["video"] for r in test.records] == ["01", "01", "02", "02"]


def test_clips_are_labelled_and_other_is_never_scored(make: Any) -> None:
    corpora = load_cexpr(labelled(make))
    assert list(corpora) == ["train", "val"]
    train = corpora["train"]
    assert [r.labels for r in train.records] == [(5,)] * 4
    assert train.skipped.dropped == {"class Other, never scored": 1}
    assert corpora["val"].skipped.remarks["its test list is its val list"] == 1
    assert "labelled by a team, not by the organisers" in train.skipped.remarks
    # Two clips of one video stay together.
    assert {r.subject for r in train.records} == {"24"}
    assert len(groups(train)) == 1


def test_the_labelled_part_and_the_challenge_side_by_side(make: Any) -> None:
    labelled(make)
    make.frames(CHALLENGE, "24", 1)
    corpora = load_cexpr(make.root)
    assert list(corpora) == ["train", "val", "test"]
    assert corpora["test"].records[0].subject == corpora["train"].records[0].subject == "24"


def test_frames_come_in_the_order_of_time_and_one_face_each(make: Any) -> None:
    make.frames(CHALLENGE, "01", 12, faces=2)
    test = load_cexpr(make.root)["test"]
    frames = [r.key for r in test.records]
    assert frames == [f"01/frame-{n}/face-0" for n in range(12)]  # 10 after 9, not after 1
    assert test.skipped.dropped == {"another face in the frame": 12}
    every = load_cexpr(make.root, every=5)["test"]
    assert [r.key for r in every.records] == [f"01/frame-{n}/face-0" for n in (0, 5, 10)]


def test_frames_without_a_face_and_videos_without_frames_are_counted(make: Any) -> None:
    make.frames(CHALLENGE, "01", 3)
    (make.root / CHALLENGE / "cropped_aligned" / "01" / "frame-3").mkdir()
    make.folds(CHALLENGE, test=["videos/01,0,x", "videos/02,0,x"])
    test = load_cexpr(make.root)["test"]
    assert test.skipped.dropped == {"frame without a face": 1, "neither frames nor video": 1}


def test_plain_frames(make: Any) -> None:
    for n in (1, 2, 10):
        make.picture(make.root / CHALLENGE / "frames" / "07" / f"{n}.jpg")
    test = load_cexpr(make.root / CHALLENGE)["test"]
    assert [r.key for r in test.records] == ["07/1.jpg", "07/2.jpg", "07/10.jpg"]


def test_frames_of_one_number_are_in_the_order_of_their_names(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{letter}-of-10.jpg" for letter in "abcd"]
    for name in names:
        make.picture(make.root / CHALLENGE / "frames" / "07" / name)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    test = load_cexpr(make.root / CHALLENGE)["test"]
    assert [r.key for r in test.records] == [f"07/{name}" for name in names]


def test_a_truncated_frame(make: Any) -> None:
    make.frames(CHALLENGE, "01", 2)
    folder = make.root / CHALLENGE / "cropped_aligned" / "01" / "frame-1"
    make.cut_off(folder / "v-01-f-1-face-0.jpg")
    corpora = load_cexpr(make.root)
    assert len(corpora["test"].records) == 2
    assert len(examine(corpora, SilentReporter()).corpora["test"].records) == 1
    assert corpora["test"].skipped.dropped == {"image cannot be read": 1}


def test_videos_alone_say_what_to_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    make.text(make.root / CHALLENGE / "videos" / "01.mp4", "no video")
    assert video_names(make.root / CHALLENGE) == ["01"]
    with pytest.raises(DataError, match=r"extract its frames first, to frames/01/.*install imageio"):
        load_cexpr(make.root)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("Sadly-Angry/31_Sadly-Angry_0", "not 'path,label,transcript'"),
        ("Sadly-Angry/31_Sadly-Angry_0,six,x", "not 'path,label,transcript'"),
        ("Sadly-Angry/31_Sadly-Angry_0,5,x", "differs from the folder"),
        ("Sadly-Angry/31_Sadly-Angry_0,8,x", "not one of 0 to 7"),
        ("../31_Sadly-Angry_0,6,x", "does not stay inside"),
        ("Sadly-Fearful/24_Sadly-Fearful_0,5,x", "twice"),
    ],
)
def test_malformed_lists_name_the_line(make: Any, line: str, error: str) -> None:
    path = make.text(make.root / "train.txt", "Sadly-Fearful/24_Sadly-Fearful_0,5,a, b, c", line)
    with pytest.raises(DataError, match=f"line 2.*{error}"):
        read_fold(path)


def row(begin: str, end: str, *classes: int) -> str:
    return f"{begin},{end}," + ",".join("1" if k in classes else "" for k in range(8))


def test_labels_by_time(make: Any) -> None:
    for video in ("01", "02"):
        make.frames(LABELLED, video, 8)
    make.text(
        make.root / LABELLED / "annotation" / "01.csv",
        HEADER,
        row("00:00:00.000", "00:00:01.000", 2),
        row("00:00:01.000", "00:00:02.000", 7),
        row("00:00:02.500", "00:00:03.500", 4),
        row("00:00:03.000", "00:00:03.500", 6),
    )
    corpora = load_cexpr(make.root, fps=2.0)
    assert list(corpora) == ["all"]
    assert [r.labels for r in corpora["all"].records] == [(2,), (2,), (4,)]
    assert corpora["all"].skipped.dropped == {
        "class Other, never scored": 2,
        "frame outside the annotation": 2,
        "two labels at once": 1,
        "no annotation": 1,
    }
    with pytest.raises(ConfigError, match="fps"):
        load_cexpr(make.root)


def test_annotation_columns_are_taken_by_name(make: Any) -> None:
    names = HEADER.split(",")
    swapped = ",".join([*names[:2], names[3], names[2], *names[4:]])
    path = make.text(make.root / "a.csv", swapped, row("00:00:00.5", "00:01:00", 0))
    assert read_annotation(path) == [Segment(0.5, 60.0, 1)]
    assert labels_at(read_annotation(path), 59.9) == {1}
    assert labels_at(read_annotation(path), 60.0) == set()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (row("0:0", "00:00:01.000", 1), "is not hh:mm:ss.ms"),
        (row("00:00:01.000", "00:00:01.000", 1), "a begin before its end"),
        (row("00:00:00.000", "00:00:01.000"), "0 classes"),
        (row("00:00:00.000", "00:00:01.000", 1, 2), "2 classes"),
        ("00:00:00.000,00:00:01.000,1", "as many cells"),
    ],
)
def test_malformed_annotation_names_the_line(make: Any, line: str, error: str) -> None:
    with pytest.raises(DataError, match=f"line 2.*{error}"):
        read_annotation(make.text(make.root / "a.csv", HEADER, line))


def test_a_missing_class_column(make: Any) -> None:
    path = make.text(make.root / "a.csv", HEADER.replace("Sadly Angry", "Sad"))
    with pytest.raises(DataError, match="lacks the column Sadly Angry"):
        read_annotation(path)


def test_nothing_there_and_wrong_options(make: Any) -> None:
    with pytest.raises(DataError, match="point at C-EXPR-DB"):
        load_cexpr(make.root)
    with pytest.raises(ConfigError, match="every"):
        load_cexpr(make.root, every=0)
    (make.root / CHALLENGE / "cropped_aligned").mkdir(parents=True)
    with pytest.raises(DataError, match="test is empty"):
        load_cexpr(make.root)


def test_a_label_of_a_fold_is_out_of_range(make: Any) -> None:
    with pytest.raises(LabelError, match="not one of 0 to 7"):
        read_fold(make.text(make.root / "val.txt", "clip,9,x"))
