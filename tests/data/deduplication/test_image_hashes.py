from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from carefl_secure.data.corpora.image_folder import load_imagefolder
from carefl_secure.data.corpora.rafdb import load_rafdb
from carefl_secure.data.deduplication.image_hashes import ImageHash, difference_hash, hash_images, near_pairs
from carefl_secure.data.records import image_of
from carefl_secure.data.splits import Subset


def distance(a: int | None, b: int | None) -> int:
    assert a is not None
    assert b is not None
    return (a ^ b).bit_count()


def test_the_hash_is_the_sign_of_differences_between_neighbours() -> None:
    cells = np.random.default_rng(0).permutation(72).reshape(8, 9).astype(np.uint8) * 3
    expected = 0
    for row in range(8):
        for column in range(8):
            expected = expected * 2 + int(cells[row, column] < cells[row, column + 1])
    assert difference_hash(Image.fromarray(cells)) == expected
    falling = np.tile(np.arange(90, 0, -10, np.uint8), (8, 1))
    assert difference_hash(Image.fromarray(falling)) == 0  # a hash like any other


def test_near_copies_are_near_and_others_are_not(make: Any, tmp_path: Any) -> None:
    image = Image.fromarray(make.pixels((180, 160), 1))
    (tmp_path / "y").mkdir()
    image.save(tmp_path / "y" / "a.jpg", quality=40)
    copies = [
        image,
        Image.open(tmp_path / "y" / "a.jpg"),
        image.resize((90, 80)),
        ImageEnhance.Brightness(image).enhance(0.7),
        image.convert("L").convert("RGB"),
        image.crop((1, 1, 179, 159)),
    ]
    others = [
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        *(Image.fromarray(make.pixels((180, 160), k)) for k in range(2, 30)),
    ]
    for k, picture in enumerate([*copies, *others]):
        path = tmp_path / "x" / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    marks = hash_images(load_imagefolder(tmp_path)["all"])[: len(copies) + len(others)]
    expected = [list(pair) for pair in combinations(range(len(copies)), 2)]
    assert near_pairs(marks).tolist() == expected


def test_flat_pictures_have_no_hash() -> None:
    assert difference_hash(Image.new("RGB", (40, 40), "black")) is None
    assert difference_hash(Image.new("RGB", (40, 40), "white")) is None


def mark(value: int, look: int = 0) -> ImageHash:
    """Make up a fingerprint; different looks do not correlate."""
    grey = np.random.default_rng(look).integers(0, 256, 256, np.uint8)
    return ImageHash("x", (), bytes([look]), None, value, grey.tobytes())


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.lists(st.integers(0, 63), max_size=6), max_size=12),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_pairs_by_bands_are_those_by_brute_force(
    bases: list[int], flips: list[list[int]], bits: int, looks: int
) -> None:
    values = list(bases)
    for base, places in zip(bases, flips, strict=False):
        for place in places:
            base ^= 1 << place
        values.append(base)
    brute = [
        [a, b]
        for a, b in combinations(range(len(values)), 2)
        if (values[a] ^ values[b]).bit_count() <= bits and a % looks == b % looks
    ]
    marks = [mark(value, k % looks) for k, value in enumerate(values)]
    assert near_pairs(marks, bits).tolist() == brute


def test_portraits_of_other_persons_are_not_near(london_faces: Path) -> None:
    """The hash alone calls nearly a tenth of all pairs of studio portraits near."""
    corpus = load_imagefolder(london_faces)["all"]
    marks = hash_images(corpus)
    by_hash = sum(distance(a.hash, b.hash) <= 4 for a, b in combinations(marks, 2) if a.hash and b.hash)
    assert by_hash > 1000
    for a, b in near_pairs(marks).tolist():
        assert corpus.records[a].subject == corpus.records[b].subject


@pytest.mark.parametrize("bits", [-1, 5])
def test_more_bits_than_bands_find(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be"):
        near_pairs([mark(1), mark(2)], bits)


def test_equal_pixels_in_other_files(make: Any) -> None:
    image = Image.fromarray(make.pixels())
    (make.root / "x").mkdir()
    for name in ("a.png", "b.bmp", "c.png"):
        image.save(make.root / "x" / name)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(make.root / "x" / "d.png")
    marks = hash_images(load_imagefolder(make.root)["all"])
    assert [m.image for m in marks] == ["x/a.png", "x/b.bmp", "x/c.png", "x/d.png"]
    assert marks[0].pixels == marks[1].pixels == marks[2].pixels != marks[3].pixels
    assert marks[0].file == marks[2].file != marks[1].file
    assert marks[0].size == (48, 40)


def test_width_and_height_are_part_of_the_pixels(make: Any) -> None:
    (make.root / "x").mkdir()
    for name, size in (("a", (8, 2)), ("b", (2, 8))):
        Image.new("RGB", size, "red").save(make.root / "x" / f"{name}.png")
    a, b = hash_images(load_imagefolder(make.root)["all"])
    assert a.pixels != b.pixels


def test_persons_of_one_image_share_a_fingerprint_and_subsets_keep_the_file(make: Any) -> None:
    make.picture(make.root / "a.png")
    rows = [f'{{"file_name": "a.png", "label": "x", "subject": "{who}"}}' for who in "ab"]
    make.text(make.root / "metadata.jsonl", *rows)
    corpus = load_imagefolder(make.root)["all"]
    (mark,) = hash_images(corpus)
    assert mark.records == (0, 1)
    (part,) = hash_images(Subset(corpus, (1,)))
    assert (part.records, part.file, part.pixels) == ((0,), mark.file, mark.pixels)
    assert image_of("a#b.png#12") == "a#b.png"


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(make: Any) -> None:
    make.raf("basic", {"train_00001": 1, "train_00002": 1})
    corpus = load_rafdb(make.root, "basic")["train"]
    make.cut_off(make.root / "basic" / "Image" / "aligned" / "train_00001_aligned.jpg")
    broken, whole = hash_images(corpus)
    assert broken.pixels is None
    assert "train_00001" in (broken.fault or "")
    assert whole.fault is None


class Steps:
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, task: str, total: int) -> None:
        self.total += total

    def advance(self, task: str, step: int = 1) -> None:
        self.done += step

    def finish(self, task: str) -> None: ...
    def note(self, text: str) -> None: ...
    def round(self, row: Any) -> None: ...


def test_progress_reaches_the_end(make: Any) -> None:
    make.raf("basic", {"train_00001": 1, "train_00002": 1})
    steps = Steps()
    hash_images(load_rafdb(make.root, "basic")["train"], steps)
    assert steps.done == steps.total == 2
