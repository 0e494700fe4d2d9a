from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from carefl_secure.errors import ModelError, NonFiniteError, RunError
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.saved import load_saved, merge, save_merged

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


def test_a_bit_that_flipped_on_disk_is_found(tiny: Path, folder: Path) -> None:
    path = folder / WEIGHTS
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1  # a low bit of a weight: still a plausible number
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="changed after"):
        load_saved(fresh(tiny), folder)


def test_weights_are_written_whole_and_last(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(tiny), quantization="none")
    adapter = Adapter(base, rank=2, alpha=4, targets=("q", "v"), head=("happy", "sad"))
    full = OSError(28, "No space left on device")

    def no_space(path: Path, target: Path) -> None:
        if target.name == WEIGHTS:
            raise full
        os.replace(path, target)

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(RunError, match="No space"):
        adapter.save(tmp_path)
    # Whatever stops it, the file that tells a finished run is not there before the label head is.
    assert {"label_head.json", "label_head.safetensors"} <= {one.name for one in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*adapter_model*"))


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


def test_rounding_a_merged_base_keeps_updates_below_a_step_of_bfloat16(tiny: Path, tmp_path: Path) -> None:
    adapter = fresh(tiny)
    # A base as checkpoints are: every weight is a multiple of bfloat16's step, so the nearest one loses small updates.
    for parameter in adapter.base.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    generator = np.random.default_rng(0)
    adapter.load(generator.normal(0, 1e-4, adapter.dimension).astype(np.float32))
    layers = {name: layer for name, layer in adapter.module.named_modules() if hasattr(layer, "get_delta_weight")}
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in layers.items()}
    updates = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    frozen = adapter.base.model.model.text_model.embed_tokens.weight.detach().clone()
    merge(adapter)
    save_merged(adapter, tmp_path, "bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}

    def kept(rounded: dict[str, torch.Tensor]) -> float:
        """Return how much of the update is left, along itself."""
        along = sum(float(((rounded[name] - before[name]) * updates[name]).sum()) for name in layers)
        return along / sum(float(updates[name].square().sum()) for name in layers)

    ours = {name: stored[f"{name.removeprefix('base_model.model.')}.weight"].float() for name in layers}
    assert kept(ours) == pytest.approx(1, abs=0.1)
    assert kept({name: (before[name] + updates[name]).bfloat16().float() for name in layers}) < 0.6
    for name, weight in ours.items():  # to one of the two neighbours
        step = 2.0 ** (torch.frexp(before[name] + updates[name])[1] - 8).float()
        assert bool(((weight - before[name] - updates[name]).abs() < step).all())
    assert torch.equal(stored["model.text_model.embed_tokens.weight"].float(), frozen)
