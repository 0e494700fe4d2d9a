"""Every file of an image folder is used once or counted once, and no odd layout is guessed."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from carefl_secure.data.checks.check import check_corpus
from carefl_secure.data.checks.examine import skipped_of
from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.errors import DataError, LabelError

FOLDERS = ["", "happy", "sad", "train/happy", "test/happy", "Test/sad", "a/b/happy", ".git", "@eaDir"]
NAMES = ["0.png", "1.PNG", "2.png", "._0.png", "notes.txt", "LICENSE", "noname", "Thumbs.db", "x.dat"]
PNG = b"\x89PNG\r\n\x1a\n"


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")


def flat(root: Path, count: int = 4) -> None:
    for k in range(count):
        image(root / f"{k}.png")


def write(root: Path, text: str, name: str = "metadata.jsonl") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def rows(root: Path, count: int = 4, **columns: list[object]) -> None:
    """Write metadata for images 0, 1, ...; the columns are repeated as often as needed."""
    lines = []
    for k in range(count):
        own = {name: values[k % len(values)] for name, values in columns.items()}
        lines.append(json.dumps({"file_name": f"{k}.png", "label": "ab"[k % 2], **own}))
    write(root, "\n".join(lines))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.sets(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)), max_size=16),
    described=st.sampled_from(["", "", "train", "happy", "."]),
)
def test_every_file_is_used_or_counted_once(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str]], described: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folder, name in files:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(PNG if name == "noname" else b"x")
    metadata = bool(described)
    if described:
        inside = [p for p in (root / described).rglob("*.png") if not p.name.startswith(".")]
        named = [p.relative_to(root / described).as_posix() for p in inside]
        lines = [json.dumps({"file_name": name, "label": "word"}) for name in named[:3]]
        write(root / described, "\n".join(lines))
    try:
        corpora = load_imagefolder(root)
    except (DataError, LabelError):
        return  # refused: nothing was guessed
    used = {source.path for one in corpora.values() for source in one.sources}
    counted = sum(one.skipped.total for one in corpora.values())
    assert len(used) + counted + metadata == len(files) + metadata
    assert len(used) == sum(len(one.records) for one in corpora.values())


def linked_twice(root: Path) -> None:
    image(root / "happy" / "0.png")
    (root / "joy").symlink_to(root / "happy")


def half_a_split_column(root: Path) -> None:
    flat(root)
    rows(root, split=["train", None])


def a_split_that_is_none(root: Path) -> None:
    flat(root)
    rows(root, split=["train", "holdout"])


def a_split_column_against_the_folder(root: Path) -> None:
    flat(root / "test")
    flat(root / "train")
    rows(root / "test", split=["train"])
    rows(root / "train")


def metadata_in_one_split_only(root: Path) -> None:
    flat(root / "train")
    rows(root / "train")
    image(root / "test" / "a" / "0.png")


def a_table_of_stems(root: Path) -> None:
    image(root / "happy" / "0.png")
    image(root / "happy" / "1.png")
    write(root, "id,emotion\n0,sad\n1,sad\n", "labels.csv")


def a_list_without_a_suffix(root: Path) -> None:
    image(root / "happy" / "img_0.png")
    write(root, "img_0.png sad\n", "labels")


def one_person_in_two_spellings(root: Path) -> None:
    flat(root)
    rows(root, subject=["Ann Lee", "ann  lee"])


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        (linked_twice, "one folder by a link"),
        (half_a_split_column, "line 2 names the split None"),
        (a_split_that_is_none, "line 2 names the split 'holdout'"),
        (a_split_column_against_the_folder, "is in the folder test"),
        (metadata_in_one_split_only, "describe all images, or none"),
        (a_table_of_stems, r"labels\.csv names the image 0"),
        (a_list_without_a_suffix, "labels names the image img_0"),
        (one_person_in_two_spellings, "'Ann Lee' and 'ann  lee' differ"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, layout: Callable[[Path], None], part: str) -> None:
    layout(tmp_path)
    with pytest.raises(DataError, match=part):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_record_that_is_named_again_is_counted_or_refused(tmp_path: Path, suffix: str) -> None:
    def said(*again: dict[str, object]) -> None:
        rows = [{"file_name": f"{k}.png", "label": "ab"[k % 2], "subject": f"p{k}"} for k in range(4)]
        table = [*rows, *again]
        lines = [json.dumps(row) for row in table]
        if suffix == ".csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in table)]
        write(tmp_path, "\n".join(lines), f"metadata{suffix}")

    flat(tmp_path)
    same: dict[str, object] = {"file_name": "0.png", "label": "a", "subject": "p0"}
    said(same)
    corpus = load_imagefolder(tmp_path)["all"]
    assert len(corpus.records) == 4 and skipped_of(corpus).dropped == {"the same record again": 1}
    said({**same, "subject": "p9", "label": "b"})  # another person in the same image
    assert len(load_imagefolder(tmp_path)["all"].records) == 5
    said({**same, "label": "b"})  # one row for each label, or a mistake
    with pytest.raises(LabelError, match=r"0\.png again with other labels"):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize("word", ["a/c", "a+c", "a & c", "a, c", "c|a"])
def test_a_word_that_holds_another_label_and_a_separator_is_refused(tmp_path: Path, word: str) -> None:
    flat(tmp_path)
    rows(tmp_path, label=["a", word])
    with pytest.raises(LabelError, match="looks like several labels"):
        load_imagefolder(tmp_path)


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_metadata_csv_whatever_separates_its_cells(tmp_path: Path, sign: str) -> None:
    flat(tmp_path)
    lines = [f"\ufefffile_name{sign}label", *(f"{k}.png{sign}{'ab'[k % 2]}" for k in range(4))]
    write(tmp_path, "\r\n".join(lines), "metadata.csv")
    assert load_imagefolder(tmp_path)["all"].space.labels == ("a", "b")


@pytest.mark.parametrize("label", ["null", "NaN", "None", "N/A", "very\nhappy", "sad\u200b"])
def test_labels_that_are_none_or_cannot_be_seen(tmp_path: Path, label: str) -> None:
    flat(tmp_path)
    rows(tmp_path, label=[label, "sad", "happy"])
    with pytest.raises(LabelError):
        load_imagefolder(tmp_path)


def test_names_in_either_unicode_form(tmp_path: Path) -> None:
    image(tmp_path / unicodedata.normalize("NFD", "fröhlich.png"))
    write(tmp_path, json.dumps({"file_name": "fröhlich.png", "label": "a"}))
    assert len(load_imagefolder(tmp_path)["all"].records) == 1
    folders = tmp_path / "folders"
    for k, form in enumerate(("NFC", "NFD")):
        image(folders / unicodedata.normalize(form, "fröhlich") / f"{k}.png")
    assert load_imagefolder(folders)["all"].space.labels == ("fröhlich",)


def test_what_is_named_but_lies_elsewhere_is_used_and_not_counted(tmp_path: Path) -> None:
    flat(tmp_path)
    image(tmp_path / ".hidden" / "9.png")
    image(tmp_path / "face.dat")
    lines = [json.dumps({"file_name": name, "label": "a"}) for name in (".hidden/9.png", "face.dat")]
    write(tmp_path, "\n".join(lines))
    found = load_imagefolder(tmp_path)["all"]
    assert len(found.records) == 2
    assert found.skipped.dropped == {"image that the metadata does not name": 4}


def test_a_folder_of_a_tool_is_not_named_where_classes_are(tmp_path: Path) -> None:
    image(tmp_path / "happy" / "0.png")
    image(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png")
    found = check_corpus(tmp_path)
    assert found.splits[0].skipped == {"in a folder that a tool made": 1}
    assert "ipynb_checkpoints" not in json.dumps(found.as_json())


def test_images_without_a_suffix_and_empty_folders_are_said(tmp_path: Path) -> None:
    image(tmp_path / "happy" / "0.png")
    image(tmp_path / "happy" / "photo")
    (tmp_path / "sad").mkdir()
    skipped = load_imagefolder(tmp_path)["all"].skipped
    assert skipped.dropped == {"an image whose name has no image suffix": 1}
    assert skipped.remarks == {"an empty folder": 1} and skipped.examples("an empty folder")
