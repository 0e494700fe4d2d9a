"""What of an image the captioner sees: all of it, with the person's box drawn, or the box alone."""

from __future__ import annotations

import math
from typing import Literal, get_args

from PIL import Image, ImageDraw

from carefl_secure.data.records import Corpus
from carefl_secure.errors import DataError

View = Literal["full", "box", "crop"]

VIEWS: tuple[View, ...] = get_args(View)
"""``full``: the image; ``box``: with a red frame around the person; ``crop``: the person only."""

_RED = (255, 0, 0)
_MARGIN = 0.1  # of the box' longer side, on each side of a crop

Box = tuple[float, float, float, float]


def seen(image: Image.Image, box: Box | None, view: View) -> Image.Image:
    """Return the picture that a captioner gets; the given RGB image stays as it is.

    ``box`` is ``(left, top, right, bottom)`` in pixels; parts outside the image are cut off. A view
    that needs a box raises `DataError` if there is none or none of it lies within the image.
    """
    if view == "full":
        return image
    if box is None:
        raise DataError("there is no person box, which the views box and crop need; use view full")
    width, height = image.size
    margin = _MARGIN * max(box[2] - box[0], box[3] - box[1]) if view == "crop" else 0.0
    if not all(map(math.isfinite, box)):
        raise DataError("a person box holds a number that is not finite; correct the annotation")
    left, top = max(0, math.floor(box[0] - margin)), max(0, math.floor(box[1] - margin))
    right = min(width, math.ceil(box[2] + margin))
    bottom = min(height, math.ceil(box[3] + margin))
    if right - left < 1 or bottom - top < 1:
        raise DataError("a person box is outside its image; correct the annotation")
    if view == "crop":
        return image.crop((left, top, right, bottom))
    drawn = image.copy()
    line = max(1, round(min(width, height) / 100))
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=_RED, width=line)
    return drawn


def view_of(corpus: Corpus, index: int, view: View) -> Image.Image:
    """Return the view of one record; errors name it by its place, as its key may name a person."""
    try:
        return seen(corpus.image(index).convert("RGB"), corpus.records[index].box, view)
    except DataError as error:
        raise DataError(f"record {index} of {corpus.name}: {error}") from error
