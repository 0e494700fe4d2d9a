from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.emotic.table import load_emotic_archive
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError
from carefl_secure.progress import SilentReporter


def test_columns_are_mapped_by_name_though_their_order_is_another(make: Any) -> None:
    make.emotic_archive(
        "train", {"Peace": 1, "Suffering": 1}, {"Affection": 1.0, "Arr_name": "train0.npy", "Filename": "train0.jpg"}
    )
    corpus = load_emotic_archive(make.root)["train"]
    assert [[EMOTIC.labels[k] for k in r.labels] for r in corpus.records] == [["Peace", "Suffering"], ["Affection"]]
    assert [r.key for r in corpus.records] == ["mscoco/images/train0.jpg", "mscoco/images/train0.jpg#2"]
    assert corpus.records[0].attributes == {"gender": "male", "age_group": "teenager", "source": "mscoco"}
    assert corpus.extras["vad"].tolist() == [[6, 5, 7]] * 2


def test_boxes_are_scaled_to_the_array(make: Any) -> None:
    corpus = load_emotic_archive(make.emotic_archive("train", {"Fear": 1}))["train"]
    assert corpus.image(0).size == (224, 224)
    # 10..50 of 100 across, 10..50 of 50 down
    assert corpus.records[0].box == pytest.approx((22.4, 44.8, 112, 224))
    person = load_emotic_archive(make.root, view="person")["train"]
    assert (person.image(0).size, person.records[0].box) == ((128, 128), None)


def test_union_counts_above_one_are_positive_too(make: Any) -> None:
    corpus = load_emotic_archive(make.emotic_archive("test", {"Fear": 3, "Pain": 0.5}))["test"]
    assert [EMOTIC.labels[k] for k in corpus.records[0].labels] == ["Fear", "Pain"]


@pytest.mark.parametrize("column", ["Peace", "Doubt/Confusion"])
def test_a_missing_category_is_named(make: Any, column: str) -> None:
    make.emotic_archive("train", {"Fear": 1})
    path = make.root / "annots_arrs" / "annot_arrs_train.csv"
    path.write_text(path.read_text().replace(column, "Something", 1))
    with pytest.raises(DataError, match=f"lacks the category column {column}"):
        load_emotic_archive(make.root)


def test_two_columns_for_one_category(make: Any) -> None:
    make.emotic_archive("train", {"Fear": 1, "Disquitement": 1})
    with pytest.raises(DataError, match="two columns for Disquietment"):
        load_emotic_archive(make.root)


@pytest.mark.parametrize("column", ["Filename", "Arr_name", "Valence"])
def test_a_missing_column_is_named(make: Any, column: str) -> None:
    make.emotic_archive("train", {"Fear": 1})
    path = make.root / "annots_arrs" / "annot_arrs_train.csv"
    path.write_text(path.read_text().replace(column, "Something", 1))
    with pytest.raises(DataError, match=f"lacks the column {column}"):
        load_emotic_archive(make.root)


def test_arrays_that_are_missing_or_cut_off_are_counted(make: Any) -> None:
    make.emotic_archive("train", {"Fear": 1}, {"Fear": 1}, {"Fear": 1}, {"Peace": 0})
    (make.root / "img_arrs" / "train0.npy").unlink()
    make.cut_off(make.root / "img_arrs" / "crop_train1.npy")
    corpus = load_emotic_archive(make.root, view="person")["train"]
    examine({"train": corpus}, SilentReporter())
    assert corpus.skipped.dropped == {"image cannot be read": 1, "no category": 1}
    assert load_emotic_archive(make.root)["train"].skipped.dropped == {"image missing": 1, "no category": 1}


@pytest.mark.parametrize(
    "array", [np.zeros((224, 224, 3), np.float32), np.zeros((224, 224), np.uint8), np.array([{"a": 1}], object)]
)
def test_arrays_that_are_no_sources(make: Any, array: np.ndarray) -> None:
    make.emotic_archive("train", {"Fear": 1, "Width": "", "Height": ""})
    np.save(make.root / "img_arrs" / "train0.npy", array, allow_pickle=True)
    corpus = load_emotic_archive(make.root)["train"]
    assert corpus.records[0].box is None
    with pytest.raises(DataError, match=r"train0\.npy"):
        corpus.image(0)


def test_the_extra_table_is_not_read(make: Any) -> None:
    make.emotic_archive("extra_train", {"Fear": 1})
    make.emotic_archive("train", {"Fear": 1, "Pain": 1})
    corpora = load_emotic_archive(make.root)
    assert list(corpora) == ["train"]
    assert len(corpora["train"].records) == 1
    assert corpora["train"].skipped.remarks == {"annot_arrs_extra_train.csv is not read": 1}


def test_an_image_without_extent(make: Any) -> None:
    make.emotic_archive("train", {"Fear": 1, "Width": 0})
    with pytest.raises(DataError, match="line 2: an image of 0 x 50"):
        load_emotic_archive(make.root)
