from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.data.readers.images import ImageArray, ImageFile, decode, image_size, place
from carefl_secure.errors import DataError


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_the_head_is_that_of_the_decoded_image(
    make: Any, tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(make.pixels((40, 30))).save(path, exif=exif)
    assert image_size(path) == decode(path).size
    assert image_size(path) == ((30, 40) if orientation in (6, 8) else (40, 30))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_images_never_escape_as_another_error(make: Any, tmp_path: Path, suffix: str) -> None:
    """Whatever bytes are flipped in the head, the outcome is an answer or a DataError."""
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(make.pixels((9, 7))).save(path, exif=exif)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(120):
        broken = whole.copy()
        broken[rng.integers(0, min(len(whole), 200), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        for read in (image_size, decode):
            try:
                read(path)
            except DataError as error:
                assert path.name in str(error)


def test_damaged_arrays_never_escape_as_another_error(make: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a.npy"
    np.save(path, np.stack([make.pixels((9, 7)) for _ in range(3)]))
    assert ImageArray(path, 2).open().size == (9, 7)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(150):
        broken = whole.copy()
        broken[rng.integers(0, 128, 2)] = rng.integers(0, 256, 2)
        path.write_bytes(broken.tobytes())
        try:
            ImageArray(path, 2).open()
        except DataError as error:
            refused += "a.npy" in str(error)
    assert refused > 110


def test_rows_archives_and_pickles(make: Any, tmp_path: Path) -> None:
    stack, packed, pickled = (tmp_path / name for name in ("a.npy", "b.npz", "c.npy"))
    np.save(stack, np.stack([make.pixels((9, 7))]))
    np.savez(packed, a=make.pixels((9, 7)))
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    for picture, words in (
        (ImageArray(stack, 1), "no row 1"),
        (ImageArray(stack, -1), "no row -1"),
        (ImageArray(stack), "where an image"),
        (ImageArray(packed), "archive"),
        (ImageArray(pickled), "cannot be read"),
        (ImageArray(tmp_path / "absent.npy"), "missing"),
    ):
        with pytest.raises(DataError, match=words):
            picture.open()


def test_crops(make: Any, tmp_path: Path) -> None:
    path = make.picture(tmp_path / "a.png", (40, 30))
    whole, part = ImageFile(path), ImageFile(path, (10.0, 5.0, 30.0, 25.0))
    assert np.array_equal(np.asarray(part.open()), np.asarray(whole.open())[5:25, 10:30])
    assert ImageFile(path, (0.2, 0.2, 0.4, 0.4)).open().size == (1, 1)
    stack = tmp_path / "a.npy"
    np.save(stack, np.stack([np.asarray(whole.open())] * 2))
    crop = ImageArray(stack, 1, (10.0, 5.0, 30.0, 25.0))
    assert np.array_equal(np.asarray(crop.open()), np.asarray(part.open()))


@pytest.mark.parametrize("name", ["", "/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "a\0"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"row 3: .*does not stay inside"):
        place(tmp_path, name, "row 3")


def test_either_slash_is_taken(tmp_path: Path) -> None:
    assert place(tmp_path, "a\\b/c.jpg ", "row 3") == tmp_path / "a" / "b" / "c.jpg"
