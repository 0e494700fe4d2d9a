from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from carefl_secure.errors import ModelError, NonFiniteError
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.saved import load_saved

WEIGHTS = "adapter_model.safetensors"


def fresh(tiny: Path, train: str = "B", seed: int = 0, rank: int = 2) -> Adapter:
    base = load_base(str(tiny), quantization="none")
    return Adapter(base, rank=rank, alpha=4, targets=("q", "v"), train=train, seed=seed)


def moved(adapter: Adapter) -> np.ndarray:
    vector = np.random.default_rng(0).normal(size=adapter.dimension).astype(np.float32)
    adapter.load(vector)
    return vector


@pytest.mark.parametrize("train", ["B", "both"])
def test_what_was_saved_comes_back(tiny: Path, tmp_path: Path, train: str) -> None:
    saved = fresh(tiny, train)
    vector = moved(saved)
    saved.save(tmp_path)
    # Another seed: A, which does not train, must come from the folder as well.
    other = fresh(tiny, train, seed=5)
    assert not np.array_equal(other.vector(), vector)
    assert np.array_equal(load_saved(other, tmp_path), vector)
    assert np.array_equal(other.vector(), vector)
    mine = dict(saved.module.named_parameters())
    for name, parameter in other.module.named_parameters():
        assert torch.equal(parameter, mine[name]), name


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    adapter = fresh(tiny)
    moved(adapter)
    adapter.save(tmp_path)
    return tmp_path


def changed(change: Callable[[dict[str, torch.Tensor], str], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = dict(load_file(folder / WEIGHTS))
        change(tensors, sorted(tensors)[-1])
        save_file(tensors, folder / WEIGHTS)

    return apply


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("text_model", "vision_model")] = torch.zeros(2)


def reshape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].T.contiguous()


def halve(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].half()


def poison(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name][0, 0] = float("nan")


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def scale(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))


@pytest.mark.parametrize(
    ("harm", "error", "text"),
    [
        (changed(drop), ModelError, "1 weights missing, 0 unexpected"),
        (changed(add), ModelError, "0 weights missing, 1 unexpected"),
        (changed(reshape), ModelError, "expected"),
        (changed(halve), ModelError, "float16"),
        (changed(poison), NonFiniteError, "NaN"),
        (cut, ModelError, "cannot be read"),
        (scale, ModelError, "lora_alpha 64"),
        (lambda folder: (folder / WEIGHTS).unlink(), ModelError, "cannot be read"),
        (lambda folder: (folder / "adapter_config.json").unlink(), ModelError, "no adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), ModelError, "cannot be"),
    ],
)
def test_what_is_not_that_adapter_is_refused(
    tiny: Path, folder: Path, harm: Callable[[Path], None], error: type[Exception], text: str
) -> None:
    harm(folder)
    adapter = fresh(tiny)
    before = adapter.vector()
    with pytest.raises(error, match=text):
        load_saved(adapter, folder)
    assert np.array_equal(adapter.vector(), before)


def test_another_rank_is_refused(tiny: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="says r 2"):
        load_saved(fresh(tiny, rank=4), folder)
