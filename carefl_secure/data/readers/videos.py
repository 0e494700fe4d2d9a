"""Single frames of a video file, read with ``imageio`` and PyAV.

`DataError` says if no package reads videos, or if the file cannot be read.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carefl_secure.errors import DataError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def _ask(path: Path, function: str, **options: Any) -> Any:
    """Call a function of ``imageio.v3`` on a video."""
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
