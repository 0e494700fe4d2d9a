"""Whatever Pillow opens looks to the model as it does to a person on white paper."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from carefl_secure.data.readers.file_kinds import image_suffixes
from carefl_secure.data.readers.images import decode, to_rgb
from carefl_secure.errors import DataError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODES = ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "PA"]
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@QUICK
@given(seed=SEEDS, mode=st.sampled_from(["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "PA"]))
def test_each_mode_equals_pillow_over_white(seed: int, mode: str) -> None:
    rgba = Image.fromarray(noise(seed, 6, 5, 4), "RGBA")
    image = rgba.convert("P").convert("PA") if mode == "PA" else rgba.convert(mode)
    found = to_rgb(image)
    assert (found.mode, found.size) == ("RGB", (5, 6))
    assert image.has_transparency_data == (mode in ("P", "LA", "RGBA", "PA"))
    if image.has_transparency_data:
        # alpha over white by the textbook: c * a + 255 * (1 - a)
        values = np.asarray(image.convert("RGBA"), np.float64)
        alpha = values[..., 3:] / 255
        expected = values[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(np.asarray(found, np.float64) - expected).max() <= 1
    else:
        assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


@QUICK
@given(first=SEEDS, second=SEEDS, form=st.sampled_from(["RGBA", "LA", "P"]))
def test_the_colour_below_full_transparency_is_not_seen(first: int, second: int, form: str) -> None:
    seen = []
    for seed in (first, second):
        if form == "P":
            image = Image.fromarray(np.zeros((3, 3), np.uint8), "P")
            image.putpalette([*noise(seed, 3).tolist(), *[0] * 765])
            image.info["transparency"] = 0
        else:
            values = noise(seed, 3, 3, len(form))
            values[..., -1] = 0
            image = Image.fromarray(values, form)
        seen.append(np.asarray(to_rgb(image)))
    assert np.array_equal(*seen)
    assert (seen[0] == 255).all()


@QUICK
@given(low=st.integers(0, 60_000), span=st.integers(1_000, 5_535))
@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str, low: int, span: int) -> None:
    values = np.linspace(low, low + span, 64).astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    grey = np.asarray(decode(path))[..., 0].astype(np.int64)
    assert np.abs(grey - np.rint(values / 257.0)).max() <= 1


def test_floats_between_zero_and_one_are_scaled_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(path)
    assert np.array_equal(np.asarray(decode(path))[..., 0], np.rint(values * 255))
    for wrong in (values * 2, values - 1, values * np.nan):
        Image.fromarray(wrong).save(path)
        with pytest.raises(DataError, match="not all between 0 and 1"):
            decode(path)


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(path)
    with pytest.raises(DataError, match="exceed 16 bits"):
        decode(path)
    Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(path)
    assert decode(path).getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_as_pillow_turns_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(1, 6, 9, 3)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(decode(path)), expected)


@pytest.mark.parametrize(
    "exif", [b"", b"junk", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_turns_nothing_and_loses_nothing(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(noise(1, 6, 9, 3))
    image.save(path, exif=exif)
    assert decode(path).size == (9, 6)


@pytest.mark.filterwarnings("ignore")
def test_broken_xmp_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="9"><<<')
    Image.fromarray(noise(1, 6, 9, 3)).save(path, pnginfo=info)
    assert decode(path).size == (9, 6)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert decode(path).getpixel((0, 0)) == (255, 0, 0)


SAVED = ["bmp", "dib", "gif", "ico", "im", "jfif", "jpe", "jpeg", "jpg", "jp2", "msp", "pbm", "pcx"]
SAVED += ["pgm", "png", "ppm", "sgi", "tga", "tif", "tiff", "webp", "xbm", "avif", "apng", "dds"]


@pytest.mark.parametrize("suffix", SAVED)
def test_every_format_that_can_be_written_is_read(tmp_path: Path, suffix: str) -> None:
    assert f".{suffix}" in image_suffixes()
    path = tmp_path / f"a.{suffix}"
    mode = {"msp": "1", "xbm": "1", "pbm": "1"}.get(suffix, "RGB")
    Image.new("RGB", (16, 16), "white").convert(mode).save(path)
    assert decode(path).getpixel((3, 3)) == (255, 255, 255)


@QUICK
@pytest.mark.filterwarnings("ignore")
@given(
    seed=SEEDS,
    form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PCX", "DDS", "SGI"]),
    keep=st.floats(0.05, 1),
    places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
)
def test_damage_never_escapes_as_another_error(
    tmp_path: Path, seed: int, form: str, keep: float, places: list[tuple[int, int]]
) -> None:
    """Whatever is cut off or changed, the outcome is an RGB image or a DataError with the name."""
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, 7, 9, 3)).save(buffer, form)
    content = bytearray(buffer.getvalue()[: max(1, int(len(buffer.getvalue()) * keep))])
    for at, value in places:
        content[at % len(content)] = value
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    try:
        assert decode(path).mode == "RGB"
    except DataError as error:
        assert "damaged.png" in str(error)


def test_wide_whole_numbers_that_may_be_meant_as_eight_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(path)
    with pytest.raises(DataError, match="may be meant as 8 bits"):
        decode(path)
    Image.fromarray(np.zeros((4, 4), np.int32)).save(path)
    assert decode(path).getpixel((0, 0)) == (0, 0, 0)
