"""Where the pixels of a record lie: an image file, an array file or a video frame; read when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from carefl_secure.data.readers.metadata import Box
from carefl_secure.data.readers.tables import below
from carefl_secure.errors import DataError

MOST_PIXELS = 80_000_000  # the largest image that is read; a bigger one is a mistake or an attack
BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError),
    *(LookupError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for a file that is damaged, cut off, or no image."""
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes an image upright, by its EXIF orientation; from 5 on the sides are swapped


class ImageSource(Protocol):
    """One image that is read when asked for."""

    @property
    def path(self) -> Path:
        """The file that holds it."""

    def open(self) -> Image.Image:
        """Read it to its end, as RGB; a DataError names the file where that fails."""


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; a note that cannot be read turns nothing."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except BROKEN:
        return 1
    return found if isinstance(found, int) else 1


def _deep(image: Image.Image) -> Image.Image:
    """Bring a grey image of more than 8 bits to 8: 16 bits by v >> 8, floats from 0..1."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("its floating-point values are not all between 0 and 1")
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its whole numbers exceed 16 bits; save it with 8 or 16 bits")
        if image.mode == "I" and 0 < values.max() < 256:
            raise ValueError("its whole numbers are all below 256 and may be meant as 8 bits; save it with 8 bits")
        grey = (values.astype(np.int64) >> 8).astype(np.uint8)
        hidden = image.info.get("transparency")
        if isinstance(hidden, int):
            grey[values == hidden] = 255
    return Image.fromarray(grey)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as it looks on white paper.

    Alpha is blended over white, as SmolVLM2's image processor does; fully transparent pixels reveal no colour. Values
    of 16 bits are cut to 8. A `ValueError` refuses floats outside 0..1 and wide integers, whose range the file does
    not state.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises into a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"the image {path} is missing; restore it") from error
    except UnidentifiedImageError as error:
        what, head = "it is of no known image format; replace it", path.read_bytes()[:40]
        if head.startswith(b"version https://git-lfs"):
            what = "it is a Git LFS pointer; run: git lfs pull"
        if head[4:11] in (b"ftyphei", b"ftypmif"):
            what = "it is HEIC, whatever its name says; run: pip install pillow-heif"
        raise DataError(f"the image {path} cannot be read: {what}") from error
    except BROKEN as error:
        raise DataError(f"the image {path} cannot be read: {error}; replace it") from error


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Read a whole image file, or ``content``, its bytes, as upright RGB; of an animation, the first frame."""
    with _reading(path), Image.open(path if content is None else io.BytesIO(content)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise DataError(f"the image {path} has more than {MOST_PIXELS} pixels; make it smaller")
        image.load()
        turn = _TURN.get(_orientation(image))
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of the upright image, from the head of the file alone."""
    with _reading(path), Image.open(path) as image:
        # Pillow has turned a TIFF already.
        sideways = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        return (image.height, image.width) if sideways else image.size


def _cut(image: Image.Image, crop: Box | None) -> Image.Image:
    if crop is None:
        return image
    left, top, right, bottom = crop
    return image.crop((int(left), int(top), max(round(right), 1), max(round(bottom), 1)))


@dataclass(frozen=True)
class ImageFile:
    """An image file, or the part of it inside a box."""

    path: Path
    crop: Box | None = None  # (left, top, right, bottom) in pixels of the upright image, inside it

    def open(self) -> Image.Image:
        """Read the image."""
        return _cut(decode(self.path), self.crop)


def open_array(path: Path) -> npt.NDArray[np.generic]:
    """Map a ``.npy`` file into memory without reading it; a pickle in it raises `DataError`."""
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"the array file {path} is missing; restore it") from error
    except (*BROKEN, TokenError, OverflowError) as error:
        raise DataError(f"the array file {path} cannot be read: {error}; restore it") from error
    if not isinstance(whole, np.ndarray):
        raise DataError(f"{path} is an archive of arrays and not one array; unpack it")
    return whole


@dataclass(frozen=True)
class ImageArray:
    """An image in a ``.npy`` file of bytes, ``[H, W, 3]``, or one row of ``[N, H, W, 3]``; ``crop`` in pixels."""

    path: Path
    row: int | None = None
    crop: Box | None = None

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the uncut image."""
        return self._pixels().shape

    def _pixels(self) -> npt.NDArray[np.generic]:
        whole = open_array(self.path)
        if self.row is None:
            return whole
        if whole.ndim == 0 or not 0 <= self.row < len(whole):
            raise DataError(f"the array file {self.path} has no row {self.row}; restore it")
        return np.asarray(whole[self.row])

    def open(self) -> Image.Image:
        """Read the image; raise `DataError` if the file does not hold bytes in that shape."""
        pixels = self._pixels()
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(
                f"{self.path} holds {pixels.dtype} of shape {list(pixels.shape)} where an image "
                "of bytes, [height, width, 3], is needed; write it again as uint8 RGB"
            )
        return _cut(Image.fromarray(np.array(pixels)), self.crop)


def place(root: Path, name: str, origin: str) -> Path:
    """Return the file ``name`` below ``root``; see :func:`~.tables.below` for what is refused."""
    return root / below(name, origin, str(root))


VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def _ask(path: Path, function: str, **options: Any) -> Any:
    if not (importlib.util.find_spec("imageio") and importlib.util.find_spec("av")):
        raise DataError(
            f"{path} is a video, and nothing that reads videos is installed. Either extract its frames first, to "
            f"frames/{path.stem}/000001.jpg and so on, or run: pip install imageio av"
        )
    try:
        reader = getattr(importlib.import_module("imageio.v3"), function)
        return reader(path, plugin="pyav", **options)
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, fault: str) -> DataError:
    return DataError(f"the video {path} cannot be read: {fault}; replace it or extract its frames")


def frame_count(path: Path) -> int:
    """Return how many frames a video has."""
    count = int(_ask(path, "improps").shape[0])
    if count < 1:
        raise _broken(path, "it has no frames")
    return count


def frame_rate(path: Path) -> float:
    """Return the frames per second of a video."""
    rate = float(_ask(path, "immeta").get("fps", 0.0))
    if not rate > 0:
        raise _broken(path, "it does not say how many frames a second has")
    return rate


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video, counted from 0."""

    path: Path
    frame: int

    def open(self) -> Image.Image:
        """Read the frame."""
        pixels = np.asarray(_ask(self.path, "imread", index=self.frame), np.uint8)
        return Image.fromarray(pixels).convert("RGB")
