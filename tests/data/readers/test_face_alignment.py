"""Alignment by landmarks: known maps are found again, and what cannot be aligned is said."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from carefl_secure.data.checks.check import check_corpus
from carefl_secure.data.checks.examine import examine
from carefl_secure.data.corpora.rafdb import load_rafdb
from carefl_secure.data.readers.face_alignment import TEMPLATE, fit_similarity, landmark_fault, warp
from carefl_secure.data.synthetic.background import SPOTS
from carefl_secure.data.synthetic.corpus import VIEWS, synthetic_corpus
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.progress import SilentReporter


def similarity(scale: float, turn: float, x: float, y: float) -> np.ndarray:
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    return np.array([[cos, -sin, x], [sin, cos, y]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@given(
    st.floats(0.05, 20),
    st.floats(-math.pi, math.pi),
    st.floats(-1000, 1000),
    st.floats(-1000, 1000),
    st.integers(3, 68),
)
def test_a_known_map_is_found_again(scale: float, turn: float, x: float, y: float, count: int) -> None:
    points = np.random.default_rng(count).normal(0, 30, (count, 2)) + 50
    truth = similarity(scale, turn, x, y)
    found = fit_similarity(points, moved(points, truth))
    np.testing.assert_allclose(found[:, :2], truth[:, :2], atol=1e-6)
    np.testing.assert_allclose(moved(points, found), moved(points, truth), atol=1e-6)


def test_no_similarity_near_by_is_better() -> None:
    rng = np.random.default_rng(3)
    target = TEMPLATE * 100
    source = moved(target, similarity(1.7, 0.4, 12, -9)) + rng.normal(0, 3, target.shape)
    best = fit_similarity(source, target)
    least = ((moved(source, best) - target) ** 2).sum()
    scale, turn = np.hypot(best[0, 0], best[1, 0]), math.atan2(best[1, 0], best[0, 0])
    for _ in range(300):
        ds, dt, dx, dy = rng.normal(0, [0.01, 0.02, 0.5, 0.5])
        other = similarity(scale + ds, turn + dt, best[0, 2] + dx, best[1, 2] + dy)
        assert ((moved(source, other) - target) ** 2).sum() > least


@pytest.mark.parametrize(
    ("points", "fault"),
    [
        (np.full((5, 2), 7.0), "one line"),
        (np.outer(np.arange(5), [2.0, 1.0]), "one line"),
        (np.array([[1.0, 2], [3, 4]]), "no usable"),
        (np.vstack([TEMPLATE[:4], [[math.nan, 1]]]), "no usable"),
        (np.vstack([TEMPLATE[:4], [[math.inf, 1]]]), "no usable"),
        (TEMPLATE * [-1, 1], "mirrored"),
        (TEMPLATE[[1, 0, 2, 4, 3]], "mirrored"),
        (TEMPLATE[:3], "3 landmarks for a template of 5"),
    ],
)
def test_what_is_no_face_is_refused(points: np.ndarray, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        fit_similarity(points, TEMPLATE)


def test_the_border_of_the_image() -> None:
    assert landmark_fault([[0, 0], [60, 50], [3, 40]], (60, 50)) is None
    assert landmark_fault([[0, 0], [60.1, 50], [3, 40]], (60, 50)) == "landmarks outside the image"
    assert landmark_fault([[-0.1, 0], [60, 50], [3, 40]], (60, 50)) == "landmarks outside the image"


@pytest.mark.parametrize("scale", [0.8, 2.0, 9.0])
def test_pixels_go_where_the_landmarks_go(scale: float) -> None:
    """Dots at the landmarks of a turned face of any size come to lie on the template."""
    points = moved(TEMPLATE * 100, similarity(scale, 0.5, 60 * scale, 10 * scale))
    size = (int(180 * scale), int(180 * scale))
    for k, (x, y) in enumerate(points):
        image = Image.new("RGB", size)
        dot = (x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale)
        ImageDraw.Draw(image).ellipse(dot, fill=(255, 255, 255))
        out = np.asarray(warp(image, fit_similarity(points, TEMPLATE * 100), 100), np.float64)
        assert out.shape == (100, 100, 3)
        weight = out[..., 0] / out[..., 0].sum()
        rows, columns = np.indices(weight.shape) + 0.5
        middle = [(weight * columns).sum(), (weight * rows).sum()]
        # Drawing rounds to whole pixels of the image; so much may be lost.
        np.testing.assert_allclose(middle, TEMPLATE[k] * 100, atol=1.0)


def test_an_upright_face_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    same = fit_similarity(TEMPLATE * 64, TEMPLATE * 64)
    assert np.abs(np.asarray(warp(Image.fromarray(pixels), same, 64)).astype(int) - pixels).max() <= 1


def test_the_faces_of_the_embedded_corpus(tmp_path: Path) -> None:
    plain = synthetic_corpus("test", 30, task="basic", cache=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    found = synthetic_corpus("test", 30, task="basic", view="aligned", cache=tmp_path)
    for view in ("auto", "original"):
        again = synthetic_corpus("test", 30, task="basic", view=view, cache=tmp_path)
        assert again.name == plain.name
        assert list(again.records) == list(plain.records)
        assert np.array_equal(again.pixels, plain.pixels)
    # The cache holds scenes alone, whatever the view.
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before
    assert found.name == "synthetic/test-aligned"
    assert [r.key for r in found.records] == [r.key for r in plain.records]
    assert [r.labels for r in found.records] == [r.labels for r in plain.records]
    assert all(record.box is None for record in found.records)
    assert found.pixels.shape == plain.pixels.shape
    goal = found.landmarks[0]
    for i in range(30):
        # The landmarks are stored as float32, and lie as the face is drawn: the fit is exact.
        residual = moved(plain.landmarks[i], fit_similarity(plain.landmarks[i], goal)) - goal
        assert np.abs(residual).max() < 1e-4
    assert np.allclose(goal[:, 0].mean(), 32)
    assert goal[1, 0] - goal[0, 0] == pytest.approx(0.72 / 1.3 * 32, rel=1e-6)
    assert len(SPOTS) == 5


def test_the_pixels_of_aligned_faces_are_those_of_the_scenes(tmp_path: Path) -> None:
    """The middle of an aligned picture has the colours of the scene where the map says so."""
    plain = synthetic_corpus("test", 60, cache=tmp_path)
    found = synthetic_corpus("test", 60, view="aligned", cache=tmp_path)
    assert plain.landmarks.std(0).max() > 2  # scenes have them in different places

    grid = np.stack(np.meshgrid(np.arange(16, 49), np.arange(16, 49)), -1).reshape(-1, 2) + 0.5

    def error(right: int, down: int) -> float:
        total = []
        for i in range(60):
            matrix = fit_similarity(plain.landmarks[i], found.landmarks[i])
            back = (grid - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
            x, y = np.floor(back).astype(int).T
            column, row = np.floor(grid + np.array([right, down])).astype(int).T
            there, here = plain.pixels[i][y, x], found.pixels[i][row, column]
            total.append(np.abs(there.astype(float) - here).mean())
        return float(np.mean(total))

    straight = error(0, 0)
    assert straight < 12  # the drawing's own noise has a standard deviation of 5
    for right, down in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        assert error(right, down) > 1.2 * straight


def test_an_unknown_view_is_refused(tmp_path: Path) -> None:
    for view in ("realigned", "face", ""):
        with pytest.raises(ConfigError, match=f"no view '{view}'.*{', '.join(VIEWS)}"):
            synthetic_corpus("test", 5, view=view, cache=tmp_path)


class Notes(SilentReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def points(make: Any, name: str, *rows: str) -> None:
    path = make.root / "basic" / "Annotation" / "manual" / f"{name}_manu_attri.txt"
    make.text(path, *rows, "1", "2", "4")


def test_rafdb_is_realigned_from_original_images(make: Any) -> None:
    names = [f"train_{k:05d}" for k in range(1, 7)]
    root = make.raf("basic", dict.fromkeys([*names, "test_0001"], 2))
    points(make, names[1], "20 20", "61 20", "27 28", "21 36", "34 36")  # beyond the 60 pixels
    points(make, names[2], "20 20", "25 20", "30 20", "35 20", "40 20")
    points(make, names[3], "35 20", "20 20", "28 28", "34 36", "21 36")
    (root / "basic" / "Annotation" / "manual" / f"{names[4]}_manu_attri.txt").unlink()
    (root / "basic" / "Image" / "original" / f"{names[5]}.jpg").unlink()
    said = Notes()
    corpora = load_rafdb(root, "basic", view="realigned", reporter=said)
    train = corpora["train"]
    assert train.name == "rafdb-basic-realigned/train"
    assert train.skipped.dropped == {
        "landmarks outside the image": 1,
        "landmarks in one point or on one line": 1,
        "landmarks mirrored": 1,
        "no usable landmarks": 1,
        "image missing": 1,
    }
    assert len(train.records) + train.skipped.total == train.stated["rows"] == 6
    assert "rafdb-basic-realigned/train: left out 1 x landmarks mirrored" in said.said
    assert train.image(0).size == (100, 100)
    assert train.records[0].box is None
    assert train.records[0].attributes["gender"] == "female"
    # The published aligned images are other files, and not asked for.
    for path in (root / "basic" / "Image" / "aligned").iterdir():
        path.unlink()
    assert len(load_rafdb(root, "basic", view="realigned")["test"].records) == 1


def test_a_broken_original_image_is_counted(make: Any) -> None:
    root = make.raf("basic", {"train_00001": 1, "train_00002": 1})
    make.cut_off(root / "basic" / "Image" / "original" / "train_00002.jpg")
    train = load_rafdb(root, "basic", view="realigned")["train"]
    examine({"train": train}, SilentReporter())
    assert train.skipped.dropped == {"image cannot be read": 1}


def test_realigned_faces_are_checked_like_any_other(make: Any) -> None:
    root = make.raf("basic", {"train_00001": 1, "train_00002": 2, "test_0001": 3, "test_0002": 4})
    original = root / "basic" / "Image" / "original"
    shutil.copy(original / "train_00002.jpg", original / "test_0001.jpg")
    report = check_corpus(root, view="realigned")
    assert any("train and test share 1 image" in fault for fault in report.faults)
