"""FER-2013: pixels in a column, read row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carefl_secure.data.checks.check import check_corpus
from carefl_secure.data.corpora.base import ReadOptions
from carefl_secure.data.corpora.fer2013 import load_fer2013
from carefl_secure.data.open_corpus import detect, open_corpus
from carefl_secure.errors import DataError, LabelError

GREY = " ".join(map(str, range(100, 109)))


def table(root: Path, rows: str, name: str = "fer2013.csv", head: str = "emotion,pixels,Usage") -> None:
    root.mkdir(exist_ok=True)
    (root / name).write_text(f"{head}\n{rows}", encoding="utf-8")


def test_usages_are_splits_and_pixels_are_as_written(tmp_path: Path) -> None:
    rows = [f"3,{GREY},Training", f"0,{GREY},PublicTest", f"6,{GREY},PrivateTest"]
    table(tmp_path, "\n".join(rows))
    corpora = open_corpus(tmp_path)
    assert list(corpora) == ["train", "val", "test"]
    assert [corpora[name].records[0].labels for name in corpora] == [(3,), (0,), (6,)]
    assert corpora["train"].records[0].key == "fer2013.csv/2"
    image = np.asarray(corpora["train"].image(0))
    np.testing.assert_array_equal(image[..., 0], np.arange(100, 109).reshape(3, 3))
    assert check_corpus(tmp_path).splits[0].labels["Happy"] == 1


def test_other_columns_and_rows_without_an_emotion(tmp_path: Path) -> None:
    table(tmp_path, f"4,Training,{GREY}\n,Training,{GREY}\n", "icml.CSV", "emotion, Usage, pixels")
    train = load_fer2013(tmp_path, ReadOptions())["train"]
    assert len(train.records) == 1 and train.skipped.dropped == {"no label": 1}


def test_names_of_tables_say_the_split(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        table(tmp_path / "fer", f"1,{GREY}\n", name, "emotion,pixels")
    assert list(open_corpus(tmp_path)) == ["train", "test"]


@pytest.mark.parametrize(
    ("row", "error", "part"),
    [
        ("7,1 2 3 4,Training", LabelError, "emotion '7'"),
        ("happy,1 2 3 4,Training", LabelError, "emotion 'happy'"),
        ("1,1 2 3,Training", DataError, "3 pixels do not make a square"),
        ("1,1 2 3 256,Training", DataError, "0 to 255"),
        ("1,1 2 3 x,Training", DataError, "whole numbers"),
        ("1,,Training", DataError, "0 pixels"),
        ("1,1 2 3 4,Holdout", DataError, "usage 'Holdout'"),
        ("1,1 2 3 4", DataError, "cells"),
    ],
)
def test_malformed_rows_name_their_line(tmp_path: Path, row: str, error: type[DataError], part: str) -> None:
    table(tmp_path, f"1,{GREY},Training\n{row}\n")
    with pytest.raises(error, match=part) as caught:
        open_corpus(tmp_path)
    assert "fer2013.csv line 3" in str(caught.value)


def test_images_next_to_the_table_and_the_same_table_twice(tmp_path: Path) -> None:
    table(tmp_path, f"1,{GREY},Training\n")
    table(tmp_path, f"1,{GREY}\n", "train.csv", "emotion,pixels")
    assert detect(tmp_path).kind == "fer2013"
    with pytest.raises(DataError, match="several tables"):
        open_corpus(tmp_path)
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy" / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"as files .*0\.png.* and as pixels"):
        open_corpus(tmp_path)
