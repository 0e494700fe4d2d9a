from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from carefl_secure.data.corpora.cexpr import load_cexpr
from carefl_secure.data.readers.images import VideoFrame, frame_count, frame_rate
from carefl_secure.errors import DataError

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 255


def _imread(path: Path, index: int, plugin: str) -> Any:
    if plugin != "pyav" or path.read_bytes() != b"video":
        raise OSError("no video")
    return RED[None][index] if index == 0 else RED


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a video, and let imageio and PyAV be installed."""
    v3 = ModuleType("imageio.v3")

    def improps(path: Path, plugin: str) -> Any:
        return SimpleNamespace(shape=(3 if path.read_bytes() == b"video" else 0, 4, 6, 3))

    def immeta(path: Path, plugin: str) -> dict[str, float]:
        return {"fps": 25.0} if path.read_bytes() == b"video" else {}

    vars(v3).update(improps=improps, immeta=immeta, imread=_imread)
    fake = ModuleType("imageio")
    fake.v3 = v3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imageio", fake)
    monkeypatch.setitem(sys.modules, "imageio.v3", v3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in ("imageio", "av") or None)
    path = tmp_path / "C-EXPR-DB-CHALLENGE" / "videos" / "01.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    return path


def test_frames_of_a_video(video: Path) -> None:
    assert (frame_count(video), frame_rate(video)) == (3, 25.0)
    picture = VideoFrame(video, 2)
    image = picture.open()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (255, 0, 0))


def test_a_corpus_of_videos(video: Path, tmp_path: Path) -> None:
    test = load_cexpr(tmp_path)["test"]
    assert [r.key for r in test.records] == ["01/0", "01/1", "01/2"]
    assert test.image(0).size == (6, 4)


def test_a_broken_video_is_named(video: Path) -> None:
    video.write_bytes(b"junk")
    for ask in (frame_count, frame_rate, lambda path: VideoFrame(path, 0).open()):
        with pytest.raises(DataError, match=r"01\.mp4 cannot be read"):
            ask(video)
