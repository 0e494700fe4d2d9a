"""How light and how sharp a picture is, in terciles: the conditions of the recording.

Brightness is the mean luma (ITU-R BT.601), from 0 to 1. Sharpness is the variance of the Laplacian of the luma
(Pech-Pacheco et al. 2000), on the picture scaled down to at most 256 pixels a side, so that pictures of different size
compare. Terciles are those of the scored records: they show weaknesses within a corpus, not between corpora.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.errors import DataError

Floats = npt.NDArray[np.float64]

_SIDE = 256
_NAMES = {"brightness": ("1 dark", "2 middle", "3 bright"), "sharpness": ("1 blurred", "2 middle", "3 sharp")}


@dataclass(frozen=True)
class Slices:
    """Records by tercile of ``brightness`` or ``sharpness``.

    ``values`` are the tercile of each record, ``edges`` where the first and the second end, value included.
    """

    name: str
    values: tuple[str, ...]
    edges: tuple[float, float]


def _luma(image: Image.Image) -> Floats:
    grey = image.convert("L")
    if max(grey.size) > _SIDE:
        grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float64) / 255


def brightness(image: Image.Image) -> float:
    """Return the mean luma, from 0 to 1."""
    return float(_luma(image).mean())


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the luma; 0 for a picture below 3 x 3 pixels."""
    luma = _luma(image)
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * middle).var())


def slice_images(images: Iterable[Image.Image]) -> tuple[Slices, ...]:
    """Sort pictures, one per record in order, into terciles of brightness and of sharpness.

    Each picture is read once. Equal pictures share a tercile, so terciles may differ in size.
    """
    measured = [(brightness(image), sharpness(image)) for image in images]
    if not measured:
        raise DataError("there is no picture to sort by brightness; score at least one record")
    found = []
    for name, column in zip(_NAMES, np.array(measured).T, strict=True):
        low, high = (float(edge) for edge in np.quantile(column, (1 / 3, 2 / 3)))
        place = (column > low).astype(np.int64) + (column > high)
        values = tuple(_NAMES[name][i] for i in place)
        found.append(Slices(name, values, (low, high)))
    return tuple(found)
