"""Layouts of image folders: the right labels and splits, a counted skip, or a refusal by name.

Never a guess: whatever stands in the folder, no label is the name of a split, a batch or a tool.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.data.corpora.image_folder_layout import SPLIT_NAMES, split_name
from carefl_secure.errors import DataError, LabelError

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = ["happy", "sad", "angry", "Doubt/Confusion"]
FORMS = ["|", ";", ",", ", ", " | ", "python", "json", "tuple", "numpy", "+", "/"]
TOOLS = [".git", ".cache", ".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "@EADIR"]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path


def metadata(path: Path, rows: Mapping[str, str], key: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in rows:
        image(path.parent / name)
    lines = [json.dumps({"file_name": name, key: word}) for name, word in rows.items()]
    path.write_text("\n".join(lines), encoding="utf-8")


def labels(corpora: Mapping[str, FileCorpus]) -> dict[str, dict[str, int]]:
    return {
        name: dict(Counter(one.space.labels[k] for r in one.records for k in r.labels))
        for name, one in corpora.items()
    }


HALF = {"0.png": "happy", "1.png": "sad", "2.png": "happy"}
COUNTS = {"happy": 2, "sad": 1}


@QUICK
@given(
    train=st.sampled_from([n for n, s in SPLIT_NAMES.items() if s == "train"]),
    other=st.sampled_from([n for n, s in SPLIT_NAMES.items() if s != "train"]),
    case=st.sampled_from([str.lower, str.upper, str.title]),
    suffix=st.sampled_from(["", "_images", "-data"]),
    tool=st.sampled_from(TOOLS),
    form=st.sampled_from(["metadata", "classes", "root"]),
    wrapped=st.booleans(),
)
def test_splits_whatever_they_are_called_and_whatever_stands_there(
    tmp_path_factory: pytest.TempPathFactory,
    train: str,
    other: str,
    case: Any,
    suffix: str,
    tool: str,
    form: str,
    wrapped: bool,
) -> None:
    top = tmp_path_factory.mktemp("layout")
    root = top / "wrapper" if wrapped and form != "root" else top
    folders = {"train": case(train) + suffix, SPLIT_NAMES[other]: case(other) + suffix}
    for folder in folders.values():
        if form == "metadata":
            metadata(root / folder / "metadata.jsonl", HALF)
        for name, word in HALF.items():
            image(root / folder / (word if form == "classes" else "") / name)
    if form == "root":
        rows = {f"{folder}/{n}": w for folder in folders.values() for n, w in HALF.items()}
        metadata(root / "metadata.jsonl", rows)
    image(root / tool / "x.png")
    image(root / folders["train"] / tool / "y.png")
    image(root / folders["train"] / "._0.png")
    (root / "README.md").write_text("about")
    corpora = load_imagefolder(top)
    assert labels(corpora) == dict.fromkeys(folders, COUNTS)
    dropped = corpora["train"].skipped.dropped
    assert dropped["in a folder that a tool made"] == 2
    assert dropped["a file that a tool made"] == 1
    assert dropped["not an image"] == 1


@pytest.mark.parametrize("name", ["Train", "TRAINING", "test-images", "val.data", "dev", "eval"])
def test_split_names(name: str) -> None:
    assert split_name(name) in ("train", "val", "test")


@pytest.mark.parametrize("name", ["retrain", "testament", "train_2", "evaluate", "happy", "images"])
def test_what_is_no_split_name(name: str) -> None:
    assert split_name(name) is None


def test_two_folders_for_one_split(tmp_path: Path) -> None:
    for folder in ("train", "val", "validation"):
        image(tmp_path / folder / "happy" / "0.png")
    with pytest.raises(DataError, match="two folders for the split val: val and validation"):
        load_imagefolder(tmp_path)


def test_a_folder_next_to_the_splits_is_named(tmp_path: Path) -> None:
    for folder in ("train", "test", "extra"):
        image(tmp_path / folder / "happy" / "0.png")
    with pytest.raises(DataError, match="other folders with images: extra"):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize(
    "name", ["metadata.JSONL", "Metadata.csv", "metadata.parquet", "metadata.tsv", "METADATA.json"]
)
@pytest.mark.parametrize("place", ["", "batch0"])
def test_metadata_under_another_name_is_never_ignored(tmp_path: Path, name: str, place: str) -> None:
    image(tmp_path / "batch0" / "0.png")
    (tmp_path / place / name).write_text("x")
    with pytest.raises(DataError, match=name):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "image,emotion\n0.png,sad\n"),
        ("annotations.json", '{"images": [{"path": "happy/0.png", "label": "sad"}]}'),
        ("list.txt", "happy/0.png 1\n"),
        ("labels.tsv", "happy\\0.png\tsad\n"),
    ],
)
def test_a_table_that_names_images_is_not_passed_over(tmp_path: Path, name: str, text: str) -> None:
    image(tmp_path / "happy" / "0.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} names the image 0\.png and may hold labels"):
        load_imagefolder(tmp_path)
    (tmp_path / name).write_text("nothing of the kind")
    assert load_imagefolder(tmp_path)["all"].skipped.dropped == {"not an image": 1}


def test_metadata_in_class_folders_that_says_something_else(tmp_path: Path) -> None:
    for folder, word in (("happy", "angry"), ("sad", "angry")):
        metadata(tmp_path / folder / "metadata.jsonl", {"0.png": word, "1.png": word})
    with pytest.raises(DataError, match="its folder is called happy"):
        load_imagefolder(tmp_path)
    for folder in ("happy", "sad"):
        metadata(tmp_path / folder / "metadata.jsonl", {"0.png": folder, "1.png": folder})
    assert labels(load_imagefolder(tmp_path)) == {"all": {"happy": 2, "sad": 2}}


def test_metadata_in_batches_deep_down(tmp_path: Path) -> None:
    for k in range(2):
        metadata(tmp_path / "part" / f"b{k}" / "metadata.jsonl", HALF)
    corpora = load_imagefolder(tmp_path)
    assert labels(corpora) == {"all": {"happy": 4, "sad": 2}}
    assert corpora["all"].records[3].key == "part/b1/0.png"


def test_images_without_metadata_next_to_described_ones(tmp_path: Path) -> None:
    metadata(tmp_path / "b0" / "metadata.jsonl", HALF)
    image(tmp_path / "b1" / "9.png")
    with pytest.raises(DataError, match=r"b1/9\.png has no metadata file"):
        load_imagefolder(tmp_path)


def test_two_files_describe_one_image(tmp_path: Path) -> None:
    metadata(tmp_path / "a" / "metadata.jsonl", HALF)
    metadata(tmp_path / "metadata.jsonl", {"a/0.png": "sad"})
    with pytest.raises(DataError, match=r"both describe a/0\.png"):
        load_imagefolder(tmp_path)


def test_a_column_names_the_split(tmp_path: Path) -> None:
    for name in HALF:
        image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,split\n0.png,happy,Train\n1.png,sad,train\n2.png,happy,test\n"
    )
    assert labels(load_imagefolder(tmp_path)) == {"train": {"happy": 1, "sad": 1}, "test": {"happy": 1}}


@pytest.mark.parametrize(
    ("column", "values", "part"),
    [
        ("split", ["Usage", "PublicTest", "PrivateTest"], "write train, val or test"),
        ("split", ["0", "0", "1"], "write train, val or test"),
        ("subset", ["train", "train", "test"], "call it split"),
        ("Set", ["training", "validation", "training"], "call it split"),
    ],
)
def test_a_column_that_would_part_the_records_unread_is_refused(
    tmp_path: Path, column: str, values: list[str], part: str
) -> None:
    rows = "".join(f"{i}.png,{WORDS[i % 2]},{value}\n" for i, value in enumerate(values))
    for i in range(3):
        image(tmp_path / f"{i}.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,label,{column}\n{rows}")
    with pytest.raises(DataError, match=part):
        load_imagefolder(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"file_name,label,split\n{rows}".replace(f",{values[2]}", f",{values[0]}"))
    if len(set(values[:2])) == 1:  # one word throughout says nothing
        assert list(load_imagefolder(tmp_path)) == ["train" if values[0] == "train" else "all"]


@pytest.mark.parametrize("word", ["<image>", "sad<end_of_utterance>", "<|im_start|>", "<row_1_col_2>", "x" * 201])
def test_a_label_that_a_prompt_cannot_hold_is_refused(tmp_path: Path, word: str) -> None:
    metadata(tmp_path / "metadata.jsonl", {"0.png": word, "1.png": "happy", "2.png": "<3", "3.png": "y" * 200})
    with pytest.raises(LabelError, match="rename it"):
        load_imagefolder(tmp_path)
    metadata(tmp_path / "metadata.jsonl", {"1.png": "happy", "2.png": "<3", "3.png": "y" * 200})
    assert sum(labels(load_imagefolder(tmp_path))["all"].values()) == 3


def test_one_folder_for_each_client(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for site in ("north", "south"):
            for name, word in HALF.items():
                image(tmp_path / "c" / split / site / word / name)
            metadata(tmp_path / "m" / split / site / "metadata.jsonl", dict.fromkeys(HALF, "sad"))
    for form, counts in (("c", {"happy": 4, "sad": 2}), ("m", {"sad": 6})):
        corpora = load_imagefolder(tmp_path / form, by_client=True)
        assert labels(corpora) == {"train": counts, "test": counts}
        assert {r.attributes["folder"] for r in corpora["train"].records} == {"north", "south"}
    with pytest.raises(DataError, match=r"data\.partition=folder"):
        load_imagefolder(tmp_path / "c")


@QUICK
@given(
    first=st.sampled_from(["happy", "Freude", "naïve", "joy and fear"]),
    change=st.sampled_from([str.upper, str.title, lambda w: w.replace(" ", "  "), lambda w: w]),
)
def test_two_spellings_of_a_label_are_refused(
    tmp_path_factory: pytest.TempPathFactory, first: str, change: Any
) -> None:
    root = tmp_path_factory.mktemp("spelling")
    metadata(root / "metadata.jsonl", {"0.png": first, "1.png": change(first)})
    if change(first) == first:
        assert load_imagefolder(root)["all"].space.labels == (first,)
    else:
        with pytest.raises(LabelError, match="differ in case or blanks"):
            load_imagefolder(root)


def test_blanks_and_unicode_forms_around_a_label_change_nothing(tmp_path: Path) -> None:
    rows = {"0.png": " naïve", "1.png": "naïve ", "2.png": "nai\u0308ve"}
    metadata(tmp_path / "metadata.jsonl", rows)
    assert load_imagefolder(tmp_path)["all"].space.labels == ("naïve",)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_records_without_a_label(tmp_path: Path, form: str) -> None:
    """Null is a record that nobody labelled; an empty list is one for which no label holds."""
    for name in HALF:
        image(tmp_path / name)
    if form == "csv":
        text = "file_name,labels\n0.png,happy|sad\n1.png,[]\n2.png,nan\n"
    else:
        rows = [["happy", "sad"], [], None]
        text = "\n".join(json.dumps({"file_name": f"{k}.png", "labels": words}) for k, words in enumerate(rows))
    (tmp_path / f"metadata.{form}").write_text(text)
    corpus = load_imagefolder(tmp_path)["all"]
    assert [r.labels for r in corpus.records] == [(0, 1), ()]
    assert corpus.skipped.dropped == {"no label": 1}


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    root, away = tmp_path / "data", tmp_path / "away"
    for word in ("happy", "sad"):
        image(root / "train" / word / "0.png")
    shutil.move(root / "train" / "sad", away)
    (root / "train" / "sad").symlink_to(away)
    assert labels(load_imagefolder(root)) == {"train": {"happy": 1, "sad": 1}}
    shutil.move(root / "train", tmp_path / "moved")
    (root / "train").symlink_to(tmp_path / "moved")
    assert labels(load_imagefolder(root)) == {"train": {"happy": 1, "sad": 1}}
    (root / "train" / "up").symlink_to(root)
    with pytest.raises(DataError, match="leads back into itself"):
        load_imagefolder(root)
    (root / "train" / "up").unlink()
    (root / "train" / "happy" / "1.png").symlink_to(root / "gone.png")
    with pytest.raises(DataError, match=r"1\.png is a link to .*gone\.png, which is not there"):
        load_imagefolder(root)


@QUICK
@given(
    rows=st.lists(st.sets(st.sampled_from(["happy", "sad", "angry", "Doubt/Confusion"])), min_size=2),
    form=st.sampled_from(["|", ";", ",", ", ", " | ", "python", "json", "tuple", "numpy", "+", "/"]),
)
def test_cells_with_several_labels_are_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[set[str]], form: str
) -> None:
    """Never a class that is a list: the labels are those that were meant, or a LabelError."""
    root = tmp_path_factory.mktemp("cells")
    write = {
        "python": lambda words: repr(words),
        "json": lambda words: json.dumps(words),
        "tuple": lambda words: repr(tuple(words)),
        "numpy": lambda words: "[" + " ".join(map(repr, words)) + "]",
    }.get(form, form.join)
    meant = [sorted(row) for row in rows]
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "labels"])
        for k, words in enumerate(meant):
            image(root / f"{k}.png")
            table.writerow([f"{k}.png", write(words)])
    try:
        corpus = load_imagefolder(root)["all"]
    except LabelError:
        assert form in ("numpy", "+", "/") or not any(meant)
        return
    if form in ("+", "/") and any(len(words) > 1 for words in meant):
        alone = {words[0] for words in meant if len(words) == 1}
        assert not any(len(w) > 1 and set(w) <= alone for w in meant)
        return
    assert [[corpus.space.labels[k] for k in r.labels] for r in corpus.records] == meant


@pytest.mark.parametrize("word", ["['happy', 'sad']", "happy;sad", "sad|happy", "happy, sad", "[]"])
def test_a_list_in_a_single_label_is_refused(tmp_path: Path, word: str) -> None:
    rows = {"0.png": "happy", "1.png": "sad", "2.png": word}
    metadata(tmp_path / "metadata.jsonl", rows)
    with pytest.raises(LabelError, match="looks like several labels"):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize("form", ["images/{}", "images/train/{}", "train/images/{}", "{}"])
def test_yolo_boxes_are_refused_and_not_read_as_classes(tmp_path: Path, form: str) -> None:
    for k in range(3):
        picture = image(tmp_path / form.format(f"{k}.png"))
        text = tmp_path / form.replace("images", "labels").format(f"{k}.txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("0 0.5 0.5 0.25 1e-1\n1 0.1 0.2 0.3 0.4\n" if k else "")
    with pytest.raises(DataError, match=r"YOLO.*one folder per label"):
        load_imagefolder(tmp_path)
    rows = [{"file_name": picture.relative_to(tmp_path).as_posix(), "label": "a"}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0]))
    assert labels(load_imagefolder(tmp_path))  # metadata says what the labels are


def test_captions_next_to_images_are_no_boxes(tmp_path: Path) -> None:
    for k, label in enumerate(("happy", "sad", "sad")):
        image(tmp_path / label / f"{k}.png").with_suffix(".txt").write_text("2 people at 3 tables\n")
    assert labels(load_imagefolder(tmp_path)) == {"all": {"happy": 1, "sad": 2}}


@pytest.mark.parametrize("folder", ["images", "Data", "train/images", "train/img"])
def test_a_folder_of_images_alone_is_no_class(tmp_path: Path, folder: str) -> None:
    image(tmp_path / folder / "0.png")
    with pytest.raises(DataError, match=r"the only class folder.*LABEL/IMAGE"):
        load_imagefolder(tmp_path)
