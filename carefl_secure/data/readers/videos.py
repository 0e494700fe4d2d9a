"""Single frames of a video file, by whichever of two optional packages is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from carefl_secure.errors import DataError

__all__ = ["VIDEO_SUFFIXES", "VideoPicture", "frame_count", "frame_rate"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})

Number = TypeVar("Number", int, float)


class _Backend(Protocol):
    def count(self, path: Path) -> int: ...

    def rate(self, path: Path) -> float: ...

    def read(self, path: Path, frame: int) -> Image.Image: ...


class _OpenCv:
    def __init__(self, cv2: ModuleType) -> None:
        self._cv2 = cv2

    def _value(self, path: Path, name: str) -> float:
        capture = self._cv2.VideoCapture(str(path))
        value = float(capture.get(getattr(self._cv2, name))) if capture.isOpened() else 0.0
        capture.release()
        return value

    def count(self, path: Path) -> int:
        return int(self._value(path, "CAP_PROP_FRAME_COUNT"))

    def rate(self, path: Path) -> float:
        return self._value(path, "CAP_PROP_FPS")

    def read(self, path: Path, frame: int) -> Image.Image:
        capture = self._cv2.VideoCapture(str(path))
        capture.set(self._cv2.CAP_PROP_POS_FRAMES, frame)
        whole, pixels = capture.read()
        capture.release()
        if not whole:
            raise OSError(f"no frame {frame}")
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


class _ImageIo:
    def __init__(self, v3: ModuleType) -> None:
        self._v3 = v3

    def count(self, path: Path) -> int:
        return int(self._v3.improps(path).shape[0])

    def rate(self, path: Path) -> float:
        return float(self._v3.immeta(path).get("fps", 0.0))

    def read(self, path: Path, frame: int) -> Image.Image:
        return Image.fromarray(np.asarray(self._v3.imread(path, index=frame), np.uint8))


def _backend(path: Path) -> _Backend:
    if importlib.util.find_spec("cv2"):
        return _OpenCv(importlib.import_module("cv2"))
    if importlib.util.find_spec("imageio"):
        return _ImageIo(importlib.import_module("imageio.v3"))
    raise DataError(
        f"{path} is a video, and nothing that reads videos is installed. Either extract its frames "
        f"first, to frames/{path.stem}/000001.jpg and so on, or install imageio with pyav or "
        "opencv-python-headless."
    )


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(f"the video {path} cannot be read: {error}; replace it or extract its frames")


def _told(path: Path, ask: Callable[[_Backend], Number]) -> Number:
    backend = _backend(path)
    try:
        return ask(backend)
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise _broken(path, error) from error


def frame_count(path: Path) -> int:
    """Return how many frames a video has.

    Raises
    ------
    DataError
        If no package reads videos, or this one cannot be read.
    """
    count = _told(path, lambda backend: backend.count(path))
    if count < 1:
        raise _broken(path, ValueError("it has no frames"))
    return count


def frame_rate(path: Path) -> float:
    """Return the frames per second of a video.

    Raises
    ------
    DataError
        If no package reads videos, or this one cannot be read.
    """
    rate = _told(path, lambda backend: backend.rate(path))
    if rate <= 0:
        raise _broken(path, ValueError("it does not say how many frames a second has"))
    return rate


@dataclass(frozen=True)
class VideoPicture:
    """One frame of a video.

    Parameters
    ----------
    path : Path
    frame : int
        Number of the frame, from 0.
    """

    path: Path
    frame: int

    @property
    def alone(self) -> bool:
        """A video is more than one of its frames."""
        return False

    def open(self) -> Image.Image:
        """Read the frame.

        Raises
        ------
        DataError
            If no package reads videos, or the frame cannot be read.
        """
        backend = _backend(self.path)
        try:
            return backend.read(self.path, self.frame).convert("RGB")
        except (OSError, ValueError, IndexError, RuntimeError) as error:
            raise _broken(self.path, error) from error
