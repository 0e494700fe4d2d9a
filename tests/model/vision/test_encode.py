"""Remembered features are those of the same base and the same pixels, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.model.embedded import build_model, build_processor
from carefl_secure.model.loader import load_base
from carefl_secure.model.vision import encode as features
from carefl_secure.model.vision.encode import cached_features, vision_features
from carefl_secure.progress import SilentReporter


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the records of every real encoding."""
    seen: list[int] = []
    original: Callable[..., torch.Tensor] = features._encode

    def counted(base: Any, corpus: Any, reporter: Any) -> torch.Tensor:
        seen.append(len(corpus.records))
        return original(base, corpus, reporter)

    monkeypatch.setattr(features, "_encode", counted)
    return seen


def test_the_same_pictures_are_encoded_once_inside_the_block_only(
    tiny: Path, tmp_path: Path, calls: list[int]
) -> None:
    corpus = synthetic_corpus("test", 12, cache=tmp_path)
    again = synthetic_corpus("test", 12, cache=tmp_path, task="basic")  # other labels, same pixels
    silent = SilentReporter()
    with cached_features():
        first = vision_features(load_base(str(tiny), quantization="none"), corpus, silent)
        kept = first.clone()
        first.zero_()  # what a caller does to its copy harms nobody
        second = vision_features(load_base(str(tiny), quantization="nf4"), again, silent)
        assert calls == [12]
        assert torch.equal(kept, second)
    vision_features(load_base(str(tiny), quantization="none"), corpus, silent)
    assert calls == [12, 12]


def test_other_pictures_or_another_base_are_encoded_anew(tiny: Path, tmp_path: Path, calls: list[int]) -> None:
    corpus = synthetic_corpus("test", 6, cache=tmp_path)
    other = tmp_path / "other"
    processor = build_processor()
    build_model(processor, seed=4).save_pretrained(other)
    processor.save_pretrained(other)
    base, silent = load_base(str(tiny), quantization="none"), SilentReporter()
    with cached_features():
        one = vision_features(base, corpus, silent)
        turned = Subset(corpus, (1, 0, 2, 3, 4, 5))
        assert torch.equal(vision_features(base, turned, silent)[[1, 0, 2, 3, 4, 5]], one)
        corpus.pixels[0, 0, 0, 0] ^= np.uint8(1)  # one bit of one pixel
        vision_features(base, corpus, silent)
        vision_features(load_base(str(other), quantization="none"), corpus, silent)
    assert calls == [6, 6, 6, 6]


def test_the_oldest_are_forgotten_where_room_ends(tiny: Path, tmp_path: Path, calls: list[int]) -> None:
    base, silent = load_base(str(tiny), quantization="none"), SilentReporter()
    parts = [synthetic_corpus("test", n, cache=tmp_path) for n in (4, 5)]
    with cached_features(limit=5 * 16 * 128 * 4):
        for part in (*parts, parts[1], parts[0]):
            vision_features(base, part, silent)
    assert calls == [4, 5, 4]
