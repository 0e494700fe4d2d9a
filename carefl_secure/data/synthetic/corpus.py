"""The embedded corpus: drawn scenes with the labels of EMOTIC and RAF-DB, the same for every seed.

Split ``public`` is labelled by the public school of annotators and open to all (pretraining,
thresholds). ``private`` and ``test`` are labelled by the private school; ``private`` is what the
clients hold and what the privacy guarantee covers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.readers.face_alignment import fit_similarity, warp
from carefl_secure.data.records import LabelSpace, Record, label_space
from carefl_secure.data.synthetic.background import SIZE, SPOTS
from carefl_secure.data.synthetic.drawing import Look, draw
from carefl_secure.data.synthetic.scene import GROUPS, Scenes, draw_scenes, emotic_labels
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.progress import SILENT, Reporter, tracked

VERSION = 1  # raised whenever the same seed would draw other images or labels
SPLITS = ("public", "private", "test")
VIEWS = ("auto", "original", "aligned")
"""``aligned`` is the face alone, upright and of one size; ``auto`` is the original scene."""

_AROUND = 1.3  # half the side of an aligned image, in radii of the face: hair and all
_TONES = ("light", "medium light", "medium", "medium dark", "dark")
_AGES = ("child", "adult", "elder")
_PER_SUBJECT = 2
_ARRAYS = ("pixels", "factors", "basic", "compound", "emotic", "vad", "boxes", "landmarks")


@dataclass(frozen=True)
class SyntheticCorpus:
    """One split of the embedded corpus under one label space."""

    name: str
    space: LabelSpace
    records: Sequence[Record]
    pixels: npt.NDArray[np.uint8]
    scenes: Scenes  # the truth behind the images, for describers and tests; no learner reads it
    vad: npt.NDArray[np.float32]  # [records, 3]: valence, arousal, dominance, from 1 to 10 as in EMOTIC
    landmarks: npt.NDArray[np.float32]  # [records, 5, 2]: eye centres, nose tip, mouth corners, in pixels

    def image(self, index: int) -> Image.Image:
        """Return one image as an RGB image of 64 x 64 pixels."""
        return Image.fromarray(self.pixels[index])


def default_cache() -> Path:
    """Return the folder of drawn corpora: ``$CAREFL_CACHE``, or the user's cache; `DataError` without a home."""
    if base := os.environ.get("CAREFL_CACHE"):
        return Path(base)
    try:
        return Path.home() / ".cache" / "carefl-secure"
    except RuntimeError as error:
        raise DataError(
            "this user has no home folder to keep the drawn corpus in; set data.cache_dir (or the "
            "variable CAREFL_CACHE) to a folder you may write to"
        ) from error


def synthetic_corpus(
    split: str,
    count: int,
    *,
    task: str = "emotic",
    view: str = "auto",
    seed: int = 0,
    cache: Path | None = None,
    reporter: Reporter = SILENT,
) -> SyntheticCorpus:
    """Draw, or read from the cache, one split; the same seed and count give the same images.

    ``count`` is before the task's choice: under ``compound`` only the scenes with a compound expression are kept,
    about four in ten. ``view`` (:data:`VIEWS`) is the scenes as drawn, or the faces cut from them by their landmarks.
    Only scenes are cached, in ``cache`` (:func:`default_cache`); aligned records have no box, and their corpus' name
    says so.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if view not in VIEWS:
        raise ConfigError(f"the embedded corpus has no view {view!r}; set data.view to one of {', '.join(VIEWS)}")
    if count < 1:
        raise ConfigError(f"a corpus needs at least one record, not {count}")
    space = label_space(task)
    folder = default_cache() if cache is None else cache
    path = folder / f"synthetic-v{VERSION}-{split}-{seed}-{count}.npz"
    arrays = _read(path)
    if arrays is None:
        arrays = _make(split, count, seed, reporter)
        _write(path, arrays)
    corpus = _assemble(split, space, seed, arrays)
    return _aligned(corpus) if view == "aligned" else corpus


def _generator(split: str, seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"carefl-synthetic/{VERSION}/{split}/{seed}/{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint64))


def _look(split: str, seed: int, subject: int) -> Look:
    digest = hashlib.sha256(f"carefl-look/{VERSION}/{split}/{seed}/{subject}".encode()).digest()
    age = 0 if digest[2] < 51 else 2 if digest[2] >= 205 else 1
    return Look(digest[0] % 5, digest[1] % 4, age, bool(digest[3] & 1))


def _make(split: str, count: int, seed: int, reporter: Reporter) -> dict[str, npt.NDArray[np.generic]]:
    scenes = draw_scenes(count, _generator(split, seed, "scenes"))
    school = "public" if split == "public" else "private"
    ticked = emotic_labels(scenes, school, _generator(split, seed, "labels"))
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    boxes = np.empty((count, 4), np.float32)
    landmarks = np.empty((count, 5, 2), np.float32)
    rng = _generator(split, seed, "drawing")
    for i in tracked(range(count), reporter, f"drawing the {split} split"):
        drawing = draw(scenes.factors[i], _look(split, seed, i // _PER_SUBJECT), rng)
        pixels[i], boxes[i], landmarks[i] = drawing.pixels, drawing.box, drawing.landmarks
    vad = _vad(scenes, _generator(split, seed, "vad"))
    return {"pixels": pixels, **vars(scenes), "emotic": ticked, "vad": vad, "boxes": boxes, "landmarks": landmarks}


def _vad(scenes: Scenes, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    # Surprise, Fear, Disgust, Happiness, Sadness, Anger, Neutral
    rows = [[6, 8, 4], [3, 8, 3], [3, 5, 6], [8, 6, 7], [2, 3, 3], [2, 8, 7], [5, 4, 5]]
    centre = np.array(rows, np.float64)
    value = centre[scenes.basic] + rng.normal(0, 0.8, (len(scenes.basic), 3))
    value[:, 0] += np.where(scenes.factors[:, 7] == 0, 0.3, -0.3)
    return np.clip(value, 1, 10).astype(np.float32)


def _assemble(split: str, space: LabelSpace, seed: int, arrays: dict[str, npt.NDArray[np.generic]]) -> SyntheticCorpus:
    basic, compound = arrays["basic"].astype(np.int8), arrays["compound"].astype(np.int8)
    factors = arrays["factors"].astype(np.int8)
    keep = np.flatnonzero(compound >= 0) if space.name == "compound" else np.arange(len(basic))
    records = []
    for i in keep.tolist():
        if space.name == "emotic":
            labels = tuple(np.flatnonzero(arrays["emotic"][i]).tolist())
        else:
            labels = (int((basic if space.name == "basic" else compound)[i]),)
        look = _look(split, seed, i // _PER_SUBJECT)
        left, top, right, bottom = (float(v) for v in arrays["boxes"][i])
        records.append(
            Record(
                key=f"{split}-{i:06d}",
                labels=labels,
                subject=f"{split}-{seed}-{i // _PER_SUBJECT}",
                attributes={
                    "skin_tone": _TONES[look.skin],
                    "age_group": _AGES[look.age],
                    "gender_presentation": "feminine" if look.feminine else "masculine",
                    "setting": GROUPS["setting"][int(factors[i, 5])],
                },
                box=(left, top, right, bottom),
            )
        )
    return SyntheticCorpus(
        f"synthetic/{split}",
        space,
        records,
        arrays["pixels"].astype(np.uint8, copy=False)[keep],
        Scenes(factors[keep], basic[keep], compound[keep]),
        arrays["vad"].astype(np.float32)[keep],
        arrays["landmarks"].astype(np.float32)[keep],
    )


def _aligned(corpus: SyntheticCorpus) -> SyntheticCorpus:
    goal = (np.array(SPOTS) / _AROUND + 1) * SIZE / 2
    pixels = np.empty_like(corpus.pixels)
    for i, landmarks in enumerate(corpus.landmarks):
        pixels[i] = np.asarray(warp(corpus.image(i), fit_similarity(landmarks, goal), SIZE))
    return replace(
        corpus,
        name=f"{corpus.name}-aligned",
        # The box of the person is one of the whole scene.
        records=[replace(record, box=None) for record in corpus.records],
        pixels=pixels,
        landmarks=np.tile(goal.astype(np.float32), (len(pixels), 1, 1)),
    )


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # a damaged cache is drawn anew: it holds nothing that is not made here


def _write(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"cannot keep the drawn corpus in {path.parent}: {error}. "
            "Free some space, or set data.cache_dir (or CAREFL_CACHE) to a folder you may write to."
        ) from error
