"""Builds tiny corpora in exactly the layouts of the published ones."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

EMOTIC_PAPER_ORDER = [
    "Peace",
    "Affection",
    "Esteem",
    "Anticipation",
    "Engagement",
    "Confidence",
    "Happiness",
    "Pleasure",
    "Excitement",
    "Surprise",
    "Sympathy",
    "Doubt/Confusion",
    "Disconnection",
    "Fatigue",
    "Embarrassment",
    "Yearning",
    "Disapproval",
    "Aversion",
    "Annoyance",
    "Anger",
    "Sensitivity",
    "Sadness",
    "Disquietment",
    "Fear",
    "Pain",
    "Suffering",
]


def structs(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Make MATLAB's array of structs, [1, N]."""
    out = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for k, row in enumerate(rows):
        for name, value in row.items():
            out[0, k][name] = value
    return out


def cells(words: Sequence[str]) -> np.ndarray:
    """Make MATLAB's cell array, [1, N]."""
    out = np.empty((1, len(words)), object)
    for k, word in enumerate(words):
        out[0, k] = word
    return out


def continuous(*vad: float) -> dict[str, Any]:
    return dict(zip(("valence", "arousal", "dominance"), map(float, vad), strict=True))


class Maker:
    """Writes pictures and annotation files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seed = 0

    def pixels(self, size: tuple[int, int] = (48, 40), seed: int | None = None) -> np.ndarray:
        """Draw coarse blocks: a picture that no other seed's is near to."""
        if seed is None:
            self._seed += 1
            seed = self._seed
        coarse = np.random.default_rng(1000 + seed).integers(0, 256, (8, 9, 3), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST))

    def picture(self, path: Path, size: tuple[int, int] = (48, 40), seed: int | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(size, seed)).save(path)
        return path

    def cut_off(self, path: Path) -> None:
        """Truncate a file so that its head is whole."""
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * 0.7)])

    def text(self, path: Path, *lines: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def table(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    # EMOTIC

    def train_person(self, words: Sequence[str], **change: Any) -> dict[str, Any]:
        return {
            "body_bbox": np.array([[5.0, 6.0, 30.0, 35.0]]),
            "annotations_categories": {"categories": cells(words)},
            "annotations_continuous": continuous(6, 5, 7),
            "gender": "Female",
            "age": "Adult",
        } | change

    def test_person(self, *annotators: Sequence[str], **change: Any) -> dict[str, Any]:
        union = sorted({word for words in annotators for word in words})
        vads = [continuous(4 + k, 5, 6) for k in range(len(annotators))]
        return {
            "body_bbox": np.array([[5.0, 6.0, 30.0, 35.0]]),
            "annotations_categories": structs([{"categories": cells(w)} for w in annotators]),
            "combined_categories": cells(union),
            "annotations_continuous": structs(vads),
            "combined_continuous": continuous(1, 1, 1),
            "gender": "Male",
            "age": "Kid",
        } | change

    def emotic_image(
        self,
        name: str,
        persons: Sequence[Mapping[str, Any]],
        *,
        folder: str = "mscoco/images",
        size: tuple[int, int] = (48, 40),
        below: str = "emotic",
        draw: bool = True,
    ) -> dict[str, Any]:
        if draw:
            self.picture(self.root / below / folder / name, size)
        return {
            "filename": name,
            "folder": folder,
            "image_size": {"n_col": size[0], "n_row": size[1]},
            "original_database": {"name": folder.split("/")[0]},
            "person": structs(persons),
        }

    def emotic(self, at: str = "Annotations/Annotations.mat", **splits: Sequence[Mapping[str, Any]]) -> Path:
        (self.root / at).parent.mkdir(parents=True, exist_ok=True)
        stored = {name: structs(images) for name, images in splits.items()}
        savemat(self.root / at, stored, do_compression=True)
        return self.root

    def whole_emotic(self) -> Path:
        return self.emotic(
            train=[
                self.emotic_image("a.jpg", [self.train_person(["Peace", "Affection"])]),
                self.emotic_image(
                    "b.jpg",
                    [self.train_person(["Anger"]), self.train_person(["Fear", "Pain"])],
                    folder="framesdb/images",
                ),
            ],
            val=[
                self.emotic_image("c.jpg", [self.test_person(["Anger"], ["Anger", "Fear"])]),
                self.emotic_image("d.jpg", [self.test_person(["Esteem"], ["Yearning"])]),
            ],
            test=[
                self.emotic_image("e.jpg", [self.test_person(["Anger"], ["Doubt/Confusion"])]),
                self.emotic_image("f.jpg", [self.test_person(["Surprise"], ["Sympathy"])]),
            ],
        )

    def emotic_table(self, split: str, *rows: Mapping[str, Any], draw: bool = True) -> Path:
        whole = []
        for k, row in enumerate(rows):
            base = {
                "Index": k,
                "Folder": "mscoco/images",
                "Filename": f"{split}{k}.jpg",
                "Image Size": [48, 40],
                "BBox": [5, 6, 30, 35],
                "Categorical_Labels": ["Peace", "Anger"],
                "Continuous_Labels": [6.0, 5.0, 7.0],
                "Gender": "Female",
                "Age": "Adult",
            } | row
            whole.append(base)
            image = self.root / "emotic" / base["Folder"] / base["Filename"]
            if draw and not image.is_file():
                self.picture(image)
        self.table(self.root / "emotic_pre" / f"{split}.csv", whole)
        return self.root

    def emotic_archive(self, split: str, *rows: Mapping[str, Any]) -> Path:
        whole = []
        (self.root / "img_arrs").mkdir(parents=True, exist_ok=True)
        for k, row in enumerate(rows):
            base: dict[str, Any] = {
                "Filename": f"{split}{k}.jpg",
                "Folder": "mscoco/images",
                "Width": 100,
                "Height": 50,
                "Gender": "Male",
                "Age": "Teenager",
            }
            base |= dict.fromkeys(EMOTIC_PAPER_ORDER, 0)
            base |= {"Valence": 6.0, "Arousal": 5.0, "Dominance": 7.0}
            base |= {"X_min": 10, "Y_min": 10, "X_max": 50, "Y_max": 50}
            base |= {"Arr_name": f"{split}{k}.npy", "Crop_name": f"crop_{split}{k}.npy"} | row
            for column, size in (("Arr_name", (224, 224)), ("Crop_name", (128, 128))):
                np.save(self.root / "img_arrs" / base[column], self.pixels(size))
            whole.append(base)
        self.table(self.root / "annots_arrs" / f"annot_arrs_{split}.csv", whole)
        return self.root

    # CAER-S

    def caers(self, *, base: str = "CAER-S", each: int = 1) -> Path:
        rest = ("Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
        for split, first in (("train", "Angry"), ("test", "Anger")):
            for name in (first, *rest):
                for k in range(1, each + 1):
                    self.picture(self.root / base / split / name / f"{k:04d}.png")
        return self.root

    # RAF-DB

    def raf(self, subset: str, labels: Mapping[str, int], *, spelled: str = "patition") -> Path:
        """Write ``train_00001 -> label`` in the full layout."""
        folder = self.root / subset
        lines = [f"{name}.jpg {label}" for name, label in labels.items()]
        self.text(folder / "EmoLabel" / f"list_{spelled}_label.txt", *lines)
        for name in labels:
            self.picture(folder / "Image" / "aligned" / f"{name}_aligned.jpg", (100, 100))
            self.picture(folder / "Image" / "original" / f"{name}.jpg", (60, 50))
            self.attributes(subset, name)
            self.text(folder / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt", "10.5 8.25 40 45.5 ")
        return self.root

    def attributes(self, subset: str, name: str, *codes: str) -> Path:
        points = ["20.5\t20", "35 20 ", "27 28", "21\t36 ", "34 36"]
        return self.text(
            self.root / subset / "Annotation" / "manual" / f"{name}_manu_attri.txt",
            *points,
            *(codes or ("1 ", "2", "4  ")),
        )

    # C-EXPR-DB

    def frames(self, base: str, video: str, count: int, faces: int = 1) -> None:
        for n in range(count):
            folder = self.root / base / "cropped_aligned" / video / f"frame-{n}"
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(faces):
                self.picture(folder / f"v-{video}-f-{n}-face-{k}.jpg", (32, 32))

    def folds(self, base: str, **lists: Sequence[str]) -> None:
        for split, lines in lists.items():
            self.text(self.root / base / "folds" / "split-0" / f"{split}.txt", *lines)


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def nan() -> float:
    return math.nan
