from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from carefl_secure.data.corpora.cexpr import load_cexpr
from carefl_secure.data.readers.videos import VideoPicture, frame_count, frame_rate
from carefl_secure.errors import DataError

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 255


class _Capture:
    """Speaks for OpenCV: a video of three frames, blue first."""

    def __init__(self, name: str) -> None:
        self.opened = Path(name).read_bytes() == b"video"
        self.at = 0.0

    def isOpened(self) -> bool:
        return self.opened

    def get(self, what: str) -> float:
        return {"count": 3.0, "fps": 25.0}[what]

    def set(self, what: str, value: float) -> None:
        self.at = value

    def read(self) -> tuple[bool, Any]:
        return self.opened and self.at < 3, RED[:, :, ::-1]

    def release(self) -> None:
        pass


def _imread(path: Path, index: int) -> Any:
    if path.read_bytes() != b"video":
        raise OSError("no video")
    return RED[None][index] if index == 0 else RED


@pytest.fixture(params=["cv2", "imageio"])
def video(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a video, and let one of the two packages be installed."""
    fake = ModuleType(request.param)
    if request.param == "cv2":
        names = {"CAP_PROP_FRAME_COUNT": "count", "CAP_PROP_FPS": "fps"}
        vars(fake).update(VideoCapture=_Capture, CAP_PROP_POS_FRAMES="at", **names)
    else:
        v3 = ModuleType("imageio.v3")

        def improps(path: Path) -> Any:
            return SimpleNamespace(shape=(3 if path.read_bytes() == b"video" else 0, 4, 6, 3))

        def immeta(path: Path) -> dict[str, float]:
            return {"fps": 25.0} if path.read_bytes() == b"video" else {}

        vars(v3).update(improps=improps, immeta=immeta, imread=_imread)
        fake.v3 = v3  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "imageio.v3", v3)
    monkeypatch.setitem(sys.modules, request.param, fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == request.param or None)
    path = tmp_path / "C-EXPR-DB-CHALLENGE" / "videos" / "01.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    return path


def test_frames_of_a_video(video: Path) -> None:
    assert (frame_count(video), frame_rate(video)) == (3, 25.0)
    picture = VideoPicture(video, 2)
    assert not picture.alone
    image = picture.open()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (255, 0, 0))


def test_a_corpus_of_videos(video: Path, tmp_path: Path) -> None:
    test = load_cexpr(tmp_path)["test"]
    assert [r.key for r in test.records] == ["01/0", "01/1", "01/2"]
    assert test.image(0).size == (6, 4)


def test_a_broken_video_is_named(video: Path) -> None:
    video.write_bytes(b"junk")
    for ask in (frame_count, frame_rate, lambda path: VideoPicture(path, 0).open()):
        with pytest.raises(DataError, match=r"01\.mp4 cannot be read"):
            ask(video)
