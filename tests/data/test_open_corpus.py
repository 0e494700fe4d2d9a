from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.data.checks.examine import skipped_of
from carefl_secure.data.corpora.base import CorpusFormat, ReadOptions
from carefl_secure.data.deduplication.duplicates import find_shared
from carefl_secure.data.deduplication.image_hashes import hash_images
from carefl_secure.data.open_corpus import FORMATS, detect, open_corpus
from carefl_secure.data.records import BASIC, CAERS, COMPOUND, targets
from carefl_secure.errors import ConfigError, DataError


def build(make: Any, kind: str) -> Path:
    root: Path = make.root
    if kind == "emotic-mat":
        make.whole_emotic()
    elif kind == "emotic-table":
        make.emotic_table("train", {}, {"Categorical_Labels": ["Fear"]})
    elif kind == "emotic-archive":
        make.emotic_archive("train", {"Fear": 1})
    elif kind == "caers":
        make.caers()
    elif kind == "ncaers":
        make.picture(root / "images" / "train" / "Anger" / "1.jpg")
        make.text(root / "crop" / "train" / "Anger" / "1.txt", "1 1 9 9")
    elif kind == "rafdb":
        make.raf("compound", {"train_00001": 11, "test_0001": 1})
    elif kind == "rafdb-folders":
        make.picture(root / "train" / "1" / "train_00001_aligned.jpg")
    elif kind == "cexpr":
        make.frames("C-EXPR-DB-CHALLENGE", "01", 2)
    elif kind == "fer2013":
        make.text(root / "fer2013.csv", "emotion,pixels,Usage\n6,0 9 8 7,Training\n")
    else:
        make.picture(root / "happy" / "1.jpg")
    return root


@pytest.mark.parametrize("kind", FORMATS)
def test_every_layout_is_recognised_and_opened(make: Any, kind: str) -> None:
    root = build(make, kind)
    assert detect(root).kind == kind
    corpora = open_corpus(root)
    assert corpora
    for corpus in corpora.values():
        assert len(corpus.records) >= 1
        assert corpus.image(0).mode == "RGB"
        assert targets(corpus).shape == (len(corpus.records), len(corpus.space.labels))
        assert len({r.key for r in corpus.records}) == len(corpus.records)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_other_file_is_counted_with_a_reason(make: Any, kind: str) -> None:
    root = build(make, kind)
    before = skipped_of(next(iter(open_corpus(root).values()))).total
    make.text(root / "README.md", "read me")
    make.text(root / "more" / ".git" / "config", "x")
    make.text(root / "._notes", "x")
    if kind not in ("imagefolder", "fer2013"):  # where they would be records, or are refused
        make.picture(root / "more" / "1.jpg")
        make.text(root / "more" / "images.zip", "x")
        make.text(root / "more" / "clip.mp4", "x")
    after = skipped_of(next(iter(open_corpus(root).values())))
    assert after.total - before == (3 if kind in ("imagefolder", "fer2013") else 6)
    assert all(after.examples(reason) for reason in after.dropped)


def test_nothing_known_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"EMOTIC.*CAER-S.*RAF-DB.*C-EXPR-DB.*metadata\.jsonl"):
        detect(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        detect(tmp_path / "absent")


def test_two_corpora_in_one_folder(make: Any) -> None:
    make.caers()
    make.raf("basic", {"train_00001": 1})
    with pytest.raises(DataError, match=r"several corpora \(caers, rafdb\)"):
        detect(make.root)


def test_rafce_alone_is_named_and_not_just_unknown(make: Any) -> None:
    make.text(make.root / "EmoLabel" / "RAFCE_emolabel.txt", "0001.jpg 0")
    with pytest.raises(DataError, match="RAF-CE, another dataset"):
        detect(make.root)


def test_lower_case_classes_of_other_corpora_are_not_taken_for_caers(make: Any) -> None:
    for name in ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"):
        for split in ("train", "test"):
            make.picture(make.root / split / name / "1.jpg")
    assert detect(make.root).kind == "imagefolder"
    assert list(open_corpus(make.root)) == ["train", "test"]


def test_rafdb_with_both_subsets_asks_which(make: Any) -> None:
    make.raf("basic", {"train_00001": 1})
    make.raf("compound", {"train_00001": 11})
    assert detect(make.root).tasks == ("basic", "compound")
    with pytest.raises(ConfigError, match="labels basic, compound"):
        open_corpus(make.root)
    assert open_corpus(make.root, ReadOptions(task="basic"))["train"].space is BASIC
    assert open_corpus(make.root, ReadOptions(task="compound"))["train"].space is COMPOUND


@pytest.mark.parametrize("view", ["aligned", "original"])
def test_the_view_of_rafdb(make: Any, view: str) -> None:
    root = build(make, "rafdb")
    assert open_corpus(root, ReadOptions(view=view))["train"].name == f"rafdb-compound-{view}/train"


def test_views_and_tasks_that_are_not_there(make: Any) -> None:
    root = build(make, "caers")
    with pytest.raises(ConfigError, match="no view 'aligned'; choose one of auto, image, face"):
        open_corpus(root, ReadOptions(view="aligned"))
    with pytest.raises(ConfigError, match="the labels caers, not 'basic'"):
        open_corpus(root, ReadOptions(task="basic"))
    folder = make.root / "mine"
    make.picture(folder / "happy" / "1.jpg")
    with pytest.raises(ConfigError, match="unknown label space 'moods'"):
        open_corpus(folder, ReadOptions(task="moods"))
    assert open_corpus(root)["train"].space is CAERS


def test_splits_of_an_image_folder_count_their_labels_alike(make: Any) -> None:
    for place in ("train/glad", "train/sad", "validation/sad", "test/angry"):
        make.picture(make.root / place / "1.jpg")
    corpora = open_corpus(make.root)
    assert list(corpora) == ["train", "val", "test"]
    assert {c.space.labels for c in corpora.values()} == {("angry", "glad", "sad")}
    assert [c.records[0].labels for c in corpora.values()] == [(1,), (2,), (0,)]
    assert len({c.name for c in corpora.values()}) == 3


def test_split_folders_and_others_are_not_guessed(make: Any) -> None:
    for name in ("train", "tram"):
        make.picture(make.root / name / "1.jpg")
    with pytest.raises(DataError, match="split folder train and other folders with images: tram"):
        open_corpus(make.root)


def test_opening_reads_no_pixels(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = []
    for kind in ("emotic-mat", "caers", "rafdb", "cexpr"):
        inner = type(make)(make.root / kind)
        roots.append(build(inner, kind))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels read"))
    for root in roots:
        open_corpus(root)


def test_an_array_is_not_read_either(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(make, "emotic-archive")
    seen: list[Any] = []
    load = np.load

    def spy(path: Any, **options: Any) -> Any:
        seen.append(options.get("mmap_mode"))
        return load(path, **options)

    monkeypatch.setattr(np, "load", spy)
    open_corpus(root)
    assert set(seen) <= {"r"}


def test_splits_are_compared_by_whole_images_in_every_view(make: Any) -> None:
    """Two persons of one image have different crops, and are yet the same picture."""
    box = np.array([[1.0, 1.0, 20.0, 20.0]])
    other = np.array([[20.0, 10.0, 40.0, 30.0]])
    make.emotic(
        train=[make.emotic_image("a.jpg", [make.train_person(["Peace"], body_bbox=box)])],
        test=[
            make.emotic_image("b.jpg", [make.test_person(["Fear"], body_bbox=other)]),
            make.emotic_image("c.jpg", [make.test_person(["Fear"])]),
        ],
    )
    images = make.root / "emotic" / "mscoco" / "images"
    shutil.copy(images / "a.jpg", images / "b.jpg")
    for view in ("image", "person"):
        parts = open_corpus(make.root, ReadOptions(view=view))
        (shared,) = find_shared(parts, {name: hash_images(one) for name, one in parts.items()})
        assert shared.examples == ("mscoco/images/a.jpg = mscoco/images/b.jpg",)


@pytest.mark.parametrize("names", [("1", "2"), ("Anger", "Happy", "Sad"), ("Angry", "Fear", "Sad")])
def test_a_resemblance_is_no_mark(make: Any, names: tuple[str, ...]) -> None:
    """Numbers are not RAF-DB's folders, and capitals are not CAER-S's."""
    for split in ("train", "test"):
        for name in names:
            make.picture(make.root / split / name / "face.jpg")
    assert detect(make.root).kind == "imagefolder"
    assert open_corpus(make.root)["train"].space.labels == names


def test_a_format_is_named_outright(make: Any) -> None:
    for name in ("1", "2"):
        make.picture(make.root / "train" / name / "face.jpg")
    assert open_corpus(make.root, format="rafdb-folders")["train"].space is BASIC
    for name in ("Angry", "Happy"):
        make.picture(make.root / "other" / "train" / name / "face.jpg")
    assert open_corpus(make.root / "other", format="caers")["train"].space is CAERS
    make.caers()
    assert open_corpus(make.root / "CAER-S", format="imagefolder")["test"].space.name == "CAER-S"


class _Point:
    def __init__(self, name: str, value: str, loaded: Any) -> None:
        self.name, self.value, self.loaded = name, value, loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_a_format_that_another_package_brings(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make.picture(make.root / "happy" / "1.jpg")
    seen: list[Any] = []

    def load(root: Path, how: ReadOptions) -> Any:
        seen.append((root, how.task))
        return open_corpus(root, format="imagefolder")

    mine = CorpusFormat("mine", "nothing", lambda root, named: ("moods",) if named else (), load)
    points = [
        _Point("mine", "pack:FORMAT", mine),
        _Point("broken", "pack:gone", ImportError("no pack")),
        _Point("other", "pack:thing", 3),
        _Point("twice", "a:b", mine),
        _Point("twice", "c:d", mine),
    ]
    monkeypatch.setattr("carefl_secure.extensions.entry_points", lambda group: points)
    assert detect(make.root).kind == "imagefolder"
    assert len(open_corpus(make.root, format="mine")["all"].records) == 1
    assert seen == [(make.root, "moods")]
    for name, words in (
        ("broken", "cannot be imported: no pack"),
        ("other", "is a int and not a CorpusFormat"),
        ("twice", "several packages bring"),
        ("absent", "unknown; choose one of auto, emotic-mat, .*mine"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_corpus(make.root, format=name)
