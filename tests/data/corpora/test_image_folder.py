from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.data.records import BASIC, Corpus, LabelSpace, targets
from carefl_secure.data.splits import Subset, split
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SilentReporter


def load(path: Path, space: LabelSpace | None = None) -> FileCorpus:
    """Read a folder without splits."""
    return load_imagefolder(path, space)["all"]


def read(path: Path) -> Corpus:
    """Read a folder without splits, and every image in it."""
    return examine({"all": load(path)}, SilentReporter()).corpora["all"]


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def described(folder: Path, *rows: dict[str, object]) -> Path:
    for row in rows:
        picture(folder / str(row["file_name"]))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_metadata_gives_records(tmp_path: Path) -> None:
    folder = described(
        tmp_path,
        {"file_name": "b.png", "label": "sad", "subject": "s", "site": "north"},
        {"file_name": "sub/a.png", "label": "glad"},
        {"file_name": "b.png", "label": "glad", "box": [0, 0, 40, 30]},
    )
    picture(folder / "not-named.png")
    corpus = load(folder)
    assert (corpus.name, corpus.space.name) == (f"{folder.name}/all", folder.name)
    assert corpus.skipped.dropped == {"image that the metadata does not name": 1}
    assert corpus.space.labels == ("glad", "sad")
    assert not corpus.space.multi
    assert [r.key for r in corpus.records] == ["b.png", "sub/a.png", "b.png#2"]
    assert [r.labels for r in corpus.records] == [(1,), (0,), (0,)]
    assert corpus.records[0].subject == "s"
    assert corpus.records[0].attributes == {"site": "north"}
    assert corpus.records[2].box == (0, 0, 40, 30)
    assert corpus.image(1).mode == "RGB"
    assert targets(corpus).tolist() == [[0, 1], [1, 0], [1, 0]]


def test_several_labels_and_a_given_space(tmp_path: Path) -> None:
    folder = described(tmp_path, {"file_name": "a.png", "labels": ["c", "a"]}, {"file_name": "b.png", "labels": []})
    assert load(folder).space.labels == ("a", "c")
    space = LabelSpace("abc", ("c", "b", "a"), multi=True)
    corpus = load(folder, space)
    assert corpus.space is space
    assert [r.labels for r in corpus.records] == [(0, 2), ()]
    with pytest.raises(LabelError, match="exactly one label, not 2"):
        load(folder, LabelSpace("one", ("a", "b", "c"), multi=False))


def test_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "sad" / "1.jpg")
    picture(tmp_path / "glad" / "2.PNG")
    (tmp_path / "glad" / "notes.txt").write_text("no image", encoding="utf-8")
    corpus = load(tmp_path)
    assert [r.key for r in corpus.records] == ["glad/2.PNG", "sad/1.jpg"]
    assert [r.labels for r in corpus.records] == [(0,), (1,)]
    assert all(r.subject is None for r in corpus.records)


@pytest.mark.parametrize("place", ["happy/deep/1.jpg", "train/sad/1.jpg"])
def test_images_that_fit_no_layout_are_refused(tmp_path: Path, place: str) -> None:
    picture(tmp_path / "sad" / "1.jpg")
    picture(tmp_path / place)
    with pytest.raises(DataError, match=r"class folder|split folder train and other folders"):
        load(tmp_path)


def test_a_stray_image_is_counted_and_many_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "sad" / "1.jpg")
    picture(tmp_path / "1.jpg")
    corpus = load(tmp_path)
    assert len(corpus.records) == 1
    assert corpus.skipped.dropped == {"image outside the class folders": 1}
    picture(tmp_path / "2.jpg")
    with pytest.raises(DataError, match="2 of 3 images"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture(tmp_path / "x" / ("a.jpg" if mode == "CMYK" else "a.png"), mode)
    image = load(tmp_path).image(0)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_photographs_held_sideways_are_turned(tmp_path: Path) -> None:
    path = picture(tmp_path / "x" / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    assert load(tmp_path).image(0).size == (30, 40)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_cut_off_files_are_found_and_counted(tmp_path: Path, suffix: str, keep: float) -> None:
    path = picture(tmp_path / "x" / f"cut.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    picture(tmp_path / "x" / "whole.png")
    corpus = load(tmp_path)
    assert corpus.image(1).size == (40, 30)
    with pytest.raises(DataError, match=rf"cut\.{suffix}"):
        corpus.image(0)
    kept = examine({"all": corpus}, SilentReporter()).corpora["all"]
    assert [record.key for record in kept.records] == ["x/whole.png"]
    assert corpus.skipped.dropped == {"image cannot be read": 1}


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 1 images .*broken\.png"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damaged_images_never_escape_as_another_error(tmp_path: Path) -> None:
    """Whatever bytes are flipped, the outcome is an image or a DataError."""
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpg", "gif", "tiff"):
        path = picture(tmp_path / "x" / f"a.{suffix}", size=(9, 7))
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            places = rng.integers(0, len(whole), 4)
            broken[places] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            try:
                read(tmp_path)
            except DataError as error:
                assert path.name in str(error)
        path.unlink()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_would_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    Image.new("1", (20_000, 5_000)).save(tmp_path / "x" / "bomb.png")
    with pytest.raises(DataError, match="pixels"):
        read(tmp_path)


def test_a_file_that_vanishes_later(tmp_path: Path) -> None:
    corpus = load(described(tmp_path, {"file_name": "a.png", "label": "x"}))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="missing"):
        corpus.image(0)


def test_row_without_its_file(tmp_path: Path) -> None:
    described(tmp_path, {"file_name": "a.png", "label": "x"})
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"line 1 names 'a\.png'"):
        load(tmp_path)


def test_label_outside_the_space_names_line_and_labels(tmp_path: Path) -> None:
    described(tmp_path, {"file_name": "a.png", "label": "Joy"})
    with pytest.raises(LabelError, match=r"line 1: label 'Joy' .*Happiness"):
        load(tmp_path, BASIC)


def test_box_outside_the_image(tmp_path: Path) -> None:
    described(tmp_path, {"file_name": "a.png", "label": "x", "box": [0, 0, 41, 30]})
    with pytest.raises(DataError, match="does not lie inside"):
        read(tmp_path)


def test_two_kinds_of_labels_and_two_metadata_files(tmp_path: Path) -> None:
    described(tmp_path, {"file_name": "a.png", "label": "x"}, {"file_name": "b.png", "labels": ["x"]})
    with pytest.raises(DataError, match="use one"):
        load(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="keep one"):
        load(tmp_path)


def test_a_corpus_without_any_label(tmp_path: Path) -> None:
    described(tmp_path, {"file_name": "a.png", "labels": []})
    with pytest.raises(LabelError, match="no label"):
        load(tmp_path)


def test_london_faces(london_faces: Path) -> None:
    corpus = load(london_faces, BASIC)
    assert len(corpus.records) == 204
    assert targets(corpus).sum(0).tolist() == [0, 0, 0, 102, 0, 0, 102]
    assert corpus.image(0).size == (320, 320)
    assert set(corpus.records[0].attributes) == {"age", "gender", "ethnicity"}
    assert load(london_faces).space.labels == ("Happiness", "Neutral")
    parts = split(corpus, {"train": 0.7, "public": 0.1, "test": 0.2}, seed=0)
    subjects = [{r.subject for r in Subset(corpus, part).records} for part in parts.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 102
