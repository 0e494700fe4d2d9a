"""The whole image, the person's box drawn, the box alone; and boxes that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.captions.run import seen, view_of
from carefl_secure.errors import DataError

GREY = Image.new("RGB", (100, 80), (90, 90, 90))


def test_full_is_the_image_itself() -> None:
    assert seen(GREY, None, "full") is GREY


def test_a_drawn_box_is_red_where_the_box_is_and_nowhere_else() -> None:
    pixels = np.asarray(seen(GREY, (20, 10, 60, 50), "box"))
    red = (pixels == (255, 0, 0)).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 49, 20, 59)
    assert (pixels[~red] == 90).all() and not red[11:49, 21:59].any()
    assert (np.asarray(GREY) == 90).all()  # the original is untouched


def test_a_crop_is_the_box_with_a_margin_inside_the_image() -> None:
    assert seen(GREY, (20, 10, 60, 50), "crop").size == (48, 48)
    assert seen(GREY, (-30, -30, 40, 20), "crop").size == (47, 27)
    assert seen(GREY, (0, 0, 100, 80), "crop").size == (100, 80)


@pytest.mark.parametrize("view", ["box", "crop"])
@pytest.mark.parametrize(
    "box", [None, (200, 200, 220, 220), (-50, 0, -20, 10), (60, 10, 20, 50), (0, 0, float("nan"), 5)]
)
def test_a_box_that_is_none_is_refused(view: Any, box: Any) -> None:
    with pytest.raises(DataError):
        seen(GREY, box, view)


def test_a_refusal_names_the_place_and_not_the_key(pictures: Callable[..., Any]) -> None:
    corpus = pictures(0, 1)
    corpus.records[1] = type(corpus.records[1])("alice-smith", (0,))
    with pytest.raises(DataError, match="record 1 of pictures") as caught:
        view_of(corpus, 1, "box")
    assert "alice" not in str(caught.value)
    assert view_of(corpus, 0, "crop").size == (36, 31)
