from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from carefl_secure.errors import DataError
from carefl_secure.evaluation.groups import brightness, sharpness, slice_images


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (40, 30), (value, value, value))


def noise(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def test_brightness_by_hand() -> None:
    assert brightness(flat(0)) == 0
    assert brightness(flat(255)) == 1
    assert brightness(Image.new("RGB", (4, 4), (255, 0, 0))) == pytest.approx(76 / 255)


def test_sharpness_by_hand() -> None:
    # One white dot inside 5 x 5: the inner 3 x 3 Laplacian is -4 in the middle, 1 at four places.
    dot = Image.new("L", (5, 5))
    dot.putpixel((2, 2), 255)
    assert sharpness(dot) == pytest.approx(np.var([-4, 1, 1, 1, 1, 0, 0, 0, 0]))
    assert sharpness(flat(90)) == 0
    assert sharpness(Image.new("RGB", (2, 2))) == 0


def test_blur_lowers_sharpness_and_light_does_not() -> None:
    picture = noise(0)
    blurred = picture.filter(ImageFilter.GaussianBlur(2))
    assert sharpness(blurred) < 0.05 * sharpness(picture)
    assert brightness(blurred) == pytest.approx(brightness(picture), abs=0.02)


def test_terciles() -> None:
    found = slice_images([flat(value) for value in (10, 200, 100, 20, 210, 110)])
    values, edges = found["brightness"]
    assert values == ("1 dark", "3 bright", "2 middle") * 2
    assert edges[0] < edges[1]
    # All equally blurred: equal pictures stay together.
    assert set(found["sharpness"][0]) == {"1 blurred"}
    blurs = [noise(1).filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 3)]
    assert slice_images(blurs)["sharpness"][0] == ("3 sharp", "2 middle", "1 blurred")


def test_pictures_of_another_size_compare() -> None:
    large = noise(2, 256).resize((1024, 1024), Image.Resampling.NEAREST)
    assert sharpness(large) == pytest.approx(sharpness(noise(2, 256)), rel=0.02)


def test_nothing_to_sort() -> None:
    with pytest.raises(DataError, match="no picture"):
        slice_images([])
