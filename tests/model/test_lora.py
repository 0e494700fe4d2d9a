"""The adapter: same A everywhere, an exact vector form, and a folder that peft alone can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from carefl_secure.errors import ConfigError, ModelError, NonFiniteError
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter


def make(tiny: Path, **settings: object) -> Adapter:
    arguments = {"rank": 4, "alpha": 8, **settings}
    return Adapter(load_base(str(tiny), quantization="none"), **arguments)  # type: ignore[arg-type]


def lora_a(adapter: Adapter) -> torch.Tensor:
    parts = [p.flatten() for n, p in adapter.module.named_parameters() if "lora_A" in n]
    return torch.cat(parts)


def test_the_seed_fixes_a_and_leaves_the_global_generator_alone(tiny: Path) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = make(tiny, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(lora_a(first), lora_a(make(tiny, seed=7)))
    assert not torch.equal(lora_a(first), lora_a(make(tiny, seed=8)))


def test_training_b_leaves_a_out_of_the_vector(tiny: Path) -> None:
    only_b, both = make(tiny, train="B"), make(tiny, train="both")
    assert all("lora_B" in name for name, _ in only_b.parameters)
    assert only_b.dimension < both.dimension
    assert not only_b.vector().any()  # B starts at zero: the tuned model starts as the base
    assert all(p.dtype == torch.float32 for _, p in both.parameters)


def test_vector_and_load_are_inverse(tiny: Path) -> None:
    adapter = make(tiny, train="both")
    vector = np.random.default_rng(0).normal(size=adapter.dimension).astype(np.float32)
    adapter.load(vector)
    assert np.array_equal(adapter.vector(), vector)


def test_a_wrong_or_broken_vector_is_refused_and_nothing_is_loaded(tiny: Path) -> None:
    adapter = make(tiny)
    with pytest.raises(ModelError, match="does not fit"):
        adapter.load(np.zeros(adapter.dimension + 1, np.float32))
    broken = np.ones(adapter.dimension, np.float32)
    broken[5] = np.nan
    with pytest.raises(NonFiniteError):
        adapter.load(broken)
    assert not adapter.vector().any()


def test_a_base_that_wears_an_adapter_is_refused(tiny: Path) -> None:
    adapter = make(tiny)
    with pytest.raises(ModelError, match="anew"):
        Adapter(adapter.base, rank=4, alpha=8)


def test_targets_and_layers_are_honoured(tiny: Path) -> None:
    adapter = make(tiny, targets=("v", "down"), last_layers=1)
    names = [name for name, _ in adapter.parameters]
    assert len(names) == 2 and all("layers.3." in name for name in names)


@pytest.mark.parametrize("settings", [{"targets": ("head",)}, {"targets": ()}, {"last_layers": 9}, {"train": "A"}])
def test_impossible_settings_are_refused(tiny: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make(tiny, **settings)


SCRIPT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
torch.manual_seed(0)
ids = torch.randint(60, 300, (1, 12))
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, sys.argv[3])
assert "carefl_secure" not in sys.modules
"""


def test_a_plain_script_loads_the_saved_adapter(tiny: Path, tmp_path: Path) -> None:
    adapter = make(tiny)
    adapter.load(np.random.default_rng(1).normal(0, 0.1, adapter.dimension).astype(np.float32))
    adapter.save(tmp_path / "adapter")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny, tmp_path / "adapter", tmp_path / "logits.pt"],
        cwd=tmp_path,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(0)
    ids = torch.randint(60, 300, (1, 12))
    adapter.module.eval()
    with torch.no_grad():
        ours = adapter.module(input_ids=ids).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), ours, atol=1e-5)


def test_a_saved_adapter_of_the_embedded_base_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    Adapter(load_base(), rank=2, alpha=2).save(tmp_path)
    said = (tmp_path / "adapter_config.json").read_text()
    assert "embedded_weights" not in said and "carefl-secure/embedded" in said
