"""Features are those of the same base and the same pixels; made once, read by row, never trusted when damaged."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import SyntheticCorpus, synthetic_corpus
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.model.embedded import build_model, build_processor
from carefl_secure.model.loader import Base, load_base
from carefl_secure.model.vision import encode, store
from carefl_secure.model.vision.encode import encode_images, vision_features
from carefl_secure.model.vision.shards import cache_folder, delete_encoders, list_encoders
from carefl_secure.progress import SilentReporter


class Notes(SilentReporter):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Keep a sentence."""
        self.said.append(text)


SILENT = SilentReporter()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the images of every real encoding."""
    seen: list[int] = []
    original: Callable[..., torch.Tensor] = encode.encode_images

    def counted(base: Any, images: Any) -> torch.Tensor:
        seen.append(len(images))
        return original(base, images)

    monkeypatch.setattr(encode, "encode_images", counted)
    return seen


@pytest.fixture
def corpus(tmp_path: Path) -> SyntheticCorpus:
    """Twelve drawn images."""
    return synthetic_corpus("test", 12, cache=tmp_path)


def base_of(tiny: Path, cache: Path | None, quantization: str = "none", dtype: str = "float32") -> Base:
    return load_base(str(tiny), quantization=quantization, compute_dtype=dtype, feature_cache=cache)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_are_what_the_vision_side_makes_of_each_image(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, kept: bool
) -> None:
    base = base_of(tiny, tmp_path / "f" if kept else None)
    found = vision_features(base, corpus, SILENT)
    expected = encode_images(base, [corpus.image(i) for i in range(12)])
    assert found[:].shape == (12, 16, 128)
    assert torch.allclose(found[:], expected, atol=1e-5)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(found[rows], found[:][rows])
    assert torch.equal(found[3:5], found[:][3:5])
    part = found.select(np.array([5, 2]))
    assert len(part) == 2
    assert torch.equal(part[torch.tensor([1])], found[:][[2]])
    found[:].zero_()  # what a caller does to its copy harms nobody
    assert float(found[:].abs().sum()) > 0
    assert torch.zeros(1, requires_grad=True).mul(found[:]).sum().requires_grad  # no inference tensor


def test_bfloat16_comes_back_bit_by_bit(tiny: Path, tmp_path: Path, corpus: SyntheticCorpus) -> None:
    found = vision_features(base_of(tiny, tmp_path / "f", dtype="bfloat16"), corpus, SILENT)
    again = vision_features(base_of(tiny, None, dtype="bfloat16"), corpus, SILENT)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[:], again[:])


def test_an_image_is_encoded_once_for_all_runs(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, calls: list[int]
) -> None:
    again = synthetic_corpus("test", 12, cache=tmp_path, task="basic")  # other labels, same pixels
    first = vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)
    second = vision_features(base_of(tiny, tmp_path / "f", "nf4"), again, SILENT)
    turned = vision_features(base_of(tiny, tmp_path / "f"), Subset(corpus, (3, 1)), SILENT)
    assert calls == [12]
    assert torch.equal(first[:], second[:])
    assert torch.equal(turned[:], first[torch.tensor([3, 1])])
    corpus.pixels[0, 0, 0, 0] ^= np.uint8(1)  # one bit of one pixel
    vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)
    assert calls == [12, 1]


def test_another_base_or_type_is_encoded_anew(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, calls: list[int]
) -> None:
    other, processor = tmp_path / "other", build_processor()
    build_model(processor, seed=4).save_pretrained(other)
    processor.save_pretrained(other)
    for base in (
        base_of(tiny, tmp_path / "f"),
        base_of(other, tmp_path / "f"),
        base_of(tiny, tmp_path / "f", dtype="bfloat16"),
    ):
        vision_features(base, corpus, SILENT)
    assert calls == [12, 12, 12]
    assert [one.images for one in list_encoders(tmp_path / "f")] == [12, 12, 12]


def test_memory_is_forgotten_with_the_base(tiny: Path, corpus: SyntheticCorpus, calls: list[int]) -> None:
    base = base_of(tiny, None)
    vision_features(base, corpus, SILENT)
    vision_features(base, corpus, SILENT)
    vision_features(base_of(tiny, None), corpus, SILENT)
    assert calls == [12, 12]


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "renamed"])
def test_a_damaged_file_is_found_said_and_made_again(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, calls: list[int], harm: str
) -> None:
    before = vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)[:]
    (path,) = (tmp_path / "f").glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-5], "empty": b""}.get(harm, content))
    if harm == "renamed":
        path.rename(path.with_name(f"{'0' * 64}.safetensors"))
    notes = Notes()
    after = vision_features(base_of(tiny, tmp_path / "f"), corpus, notes)
    assert calls == [12, 12]
    assert torch.equal(before, after[:])
    assert "is damaged: erased" in notes.said[0]
    (path,) = (tmp_path / "f").glob("*/*.safetensors")
    with safe_open(path, "pt") as file:  # an ordinary safetensors file
        assert torch.equal(file.get_tensor("features"), after[:])


def test_a_crash_leaves_nothing_that_is_used_and_a_stop_keeps_what_was_done(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_MOST", 4)
    original = encode.encode_images

    def stopped(base: Any, images: Any) -> torch.Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(base, images)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode_images", stopped)
        with pytest.raises(KeyboardInterrupt):
            vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)
    assert [one.images for one in list_encoders(tmp_path / "f")] == [8]
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(DataError, match="No space left"):
            vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)
    vision_features(base_of(tiny, tmp_path / "f"), corpus, SILENT)
    assert calls == [4, 4, 4, 4]


def test_the_size_is_shown_first_and_a_full_disk_refused(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    vision_features(base_of(tiny, tmp_path / "f"), corpus, notes)
    assert "up to 12 images, 0.1 MB" in notes.said[0]
    vision_features(base_of(tiny, tmp_path / "f"), corpus, notes)
    assert len(notes.said) == 1
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DataError, match="free some space"):
        vision_features(base_of(tiny, tmp_path / "g"), corpus, notes)


def test_the_folder_is_the_owners_and_delete_erases_it(
    tiny: Path, tmp_path: Path, corpus: SyntheticCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAREFL_CACHE", str(tmp_path / "client"))
    root = cache_folder("auto")
    assert root is not None
    assert root.is_relative_to(tmp_path / "client")  # nothing is written outside the client's folder
    found = vision_features(base_of(tiny, root), corpus, SILENT)
    folders = [root, *(p for p in root.rglob("*") if p.is_dir())]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*") if p.is_file()} == {0o600}
    (one,) = list_encoders(root)
    with pytest.raises(ConfigError, match="names 0 encoders"):
        delete_encoders(root, [one.name, "xyz"])
    assert delete_encoders(root, [one.name[:6]]) == one.size
    assert not list(root.iterdir())
    assert len(found[:]) == 12  # an open run reads on
    assert cache_folder(None) is None


def test_few_images_are_held_at_once(tiny: Path, corpus: SyntheticCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding runs at most three batches ahead of what is encoded."""
    monkeypatch.setattr(encode, "_MOST", 1)
    opened, done, most = 0, 0, 0
    original = encode.encode_images

    class Counted:
        name, space, records = corpus.name, corpus.space, corpus.records

        def image(self, index: int) -> Any:
            nonlocal opened, most
            opened += 1
            most = max(most, opened - done)
            return corpus.image(index)

    def counted(base: Any, images: Any) -> torch.Tensor:
        nonlocal done
        made = original(base, images)
        done += len(images)
        return made

    monkeypatch.setattr(encode, "encode_images", counted)
    vision_features(base_of(tiny, None), Counted(), SILENT)
    assert opened == 12
    assert most <= 4
