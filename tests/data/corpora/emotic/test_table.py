from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.data.corpora.emotic.person import ONE_EACH
from carefl_secure.data.corpora.emotic.table import load_emotic_csv, table_folder
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError, LabelError

SIZES = {"context": (224, 224), "body": (128, 128)}


def stacks(make: Any, split: str, rows: int, labels: list[list[str]] | None = None) -> None:
    folder = make.root / "emotic_pre"
    for name, size in SIZES.items():
        stack = np.stack([make.pixels(size) for _ in range(rows)])
        np.save(folder / f"{split}_{name}_arr.npy", stack)
    if labels is not None:
        ticks = np.zeros((rows, 26))
        for row, words in enumerate(labels):
            ticks[row, [EMOTIC.labels.index(word) for word in words]] = 1
        np.save(folder / f"{split}_cat_arr.npy", ticks)


def test_tables_with_the_original_images(make: Any) -> None:
    make.emotic_table("train", {}, {"Filename": "train0.jpg", "Categorical_Labels": ["Fear"]})
    make.emotic_table("test", {"Gender": "Male", "Age": "Kid"})
    corpora = load_emotic_csv(make.root)
    assert list(corpora) == ["train", "test"]
    train = corpora["train"]
    assert [r.key for r in train.records] == ["mscoco/images/train0.jpg", "mscoco/images/train0.jpg#2"]
    assert train.records[0].labels == (1, 18)  # Anger, Peace
    assert train.records[0].box == (5, 6, 30, 35)
    assert train.image(0).size == (48, 40)
    assert corpora["test"].records[0].attributes["age_group"] == "kid"
    assert train.extras["vad"].tolist() == [[6, 5, 7]] * 2
    assert load_emotic_csv(make.root / "emotic_pre")["test"].stated == {"persons": 1}


@pytest.mark.parametrize(("view", "size"), [("image", (224, 224)), ("person", (128, 128))])
def test_stacks_are_the_pictures_where_they_are(make: Any, view: Any, size: tuple[int, int]) -> None:
    make.emotic_table("train", {}, {"Categorical_Labels": ["Fear"]}, draw=False)
    stacks(make, "train", 2, [["Peace", "Anger"], ["Fear"]])
    corpus = load_emotic_csv(make.root, view=view)["train"]
    assert corpus.image(1).size == size
    stack = np.load(make.root / "emotic_pre" / f"train_{'context' if view == 'image' else 'body'}_arr.npy")
    assert np.array_equal(np.asarray(corpus.image(1)), stack[1])
    assert [r.box for r in corpus.records] == [None, None]


def test_labels_in_another_order_are_refused(make: Any) -> None:
    make.emotic_table("train", {}, {"Categorical_Labels": ["Fear"]}, draw=False)
    stacks(make, "train", 2, [["Peace", "Anger"], ["Happiness"]])
    with pytest.raises(LabelError, match=r"row 1 .* other labels than .*another order"):
        load_emotic_csv(make.root)


def test_a_stack_of_another_making_is_refused(make: Any) -> None:
    make.emotic_table("train", {}, draw=False)
    stacks(make, "train", 2)
    with pytest.raises(DataError, match=r"has 2 rows and the table has 1"):
        load_emotic_csv(make.root)


def test_a_cell_is_read_and_never_run(make: Any) -> None:
    made = make.root / "made"
    text = f"[__import__('pathlib').Path({str(made)!r}).touch()]"
    make.emotic_table("train", {"Categorical_Labels": text})
    with pytest.raises(DataError, match=r"line 2: .* not a plain list"):
        load_emotic_csv(make.root)
    assert not made.exists()


@pytest.mark.parametrize("column", ["Folder", "Filename", "BBox", "Categorical_Labels", "Continuous_Labels"])
def test_a_missing_column_is_named(make: Any, column: str) -> None:
    make.emotic_table("train", {})
    path = make.root / "emotic_pre" / "train.csv"
    make.emotic_table("val", {})  # so that the folder is still known
    text = path.read_text()
    path.write_text(text.replace(column, "Something", 1))
    with pytest.raises(DataError, match=f"lacks the column {column}"):
        load_emotic_csv(make.root)


@pytest.mark.parametrize(
    "change",
    [
        {"BBox": [1, 2, 3]},
        {"BBox": ["a", 1, 2, 3]},
        {"Continuous_Labels": [1.0, 2.0]},
        {"Categorical_Labels": ["Joy"]},
        {"Gender": "Robot"},
        {"Folder": "../.."},
    ],
)
def test_malformed_cells_name_their_line(make: Any, change: dict[str, Any]) -> None:
    make.emotic_table("train", {}, change, draw=False)
    make.picture(make.root / "emotic" / "mscoco" / "images" / "train0.jpg")
    with pytest.raises(DataError, match=r"line 3|does not stay inside"):
        load_emotic_csv(make.root)


def test_a_person_without_continuous_values_is_dropped(make: Any) -> None:
    make.emotic_table("train", {}, {"Continuous_Labels": "[nan, 5.0, 5.0]"})
    assert load_emotic_csv(make.root)["train"].skipped.dropped == {"no valence, arousal or dominance": 1}


def test_a_copy_that_kept_one_category_each_is_remarked(make: Any) -> None:
    make.emotic_table("train", *[{"Categorical_Labels": ["Fear"]}] * 3)
    assert load_emotic_csv(make.root)["train"].skipped.remarks == {ONE_EACH: 1}
    make.emotic_table("train", *[{"Categorical_Labels": ["Fear"]}] * 2, {})
    assert load_emotic_csv(make.root)["train"].skipped.remarks == {}


def test_neither_stacks_nor_images(make: Any) -> None:
    make.emotic_table("train", {}, draw=False)
    with pytest.raises(DataError, match=r"neither train_context_arr\.npy nor the images"):
        load_emotic_csv(make.root)


def test_another_table_called_train_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("file_name,label\na.png,x\n")
    assert table_folder(tmp_path) is None


def test_a_row_with_too_few_cells(make: Any) -> None:
    make.emotic_table("train", {})
    path = make.root / "emotic_pre" / "train.csv"
    path.write_text(path.read_text() + "1,mscoco/images\n")
    with pytest.raises(DataError, match="line 3 does not have as many cells"):
        load_emotic_csv(make.root)


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros((2, 26), "U3"), np.float64(3)])
def test_a_stack_of_labels_that_is_none(make: Any, array: Any) -> None:
    make.emotic_table("train", {}, {}, draw=False)
    np.save(make.root / "emotic_pre" / "train_cat_arr.npy", array)
    with pytest.raises(DataError, match="train_cat_arr"):
        load_emotic_csv(make.root)
