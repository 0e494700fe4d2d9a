"""The base is quantised where it should be, refused where it does not fit, and stays trainable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import ModelError
from carefl_secure.model.embedded import EMBEDDED
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter


def linear_types(model: torch.nn.Module, part: str) -> set[str]:
    names = ("Linear", "Linear4bit", "Linear8bitLt")
    return {type(m).__name__ for n, m in model.named_modules() if part in n and type(m).__name__ in names}


@pytest.mark.parametrize(
    ("quantization", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt"), ("none", "Linear")]
)
def test_only_the_text_model_is_quantised(tiny: Path, quantization: str, kind: str) -> None:
    base = load_base(str(tiny), quantization=quantization)
    assert linear_types(base.model, "text_model") == {kind}
    assert linear_types(base.model, "vision_model") == {"Linear"}
    assert linear_types(base.model, "connector") == {"Linear"}
    assert linear_types(base.model, "lm_head") == {"Linear"}
    assert not any(p.requires_grad for p in base.model.parameters())


def test_double_quantisation_is_on(tiny: Path) -> None:
    base = load_base(str(tiny), quantization="nf4")
    states = [m.weight.quant_state for m in base.model.modules() if hasattr(m, "quant_state")]
    assert states and all(s.nested and s.quant_type == "nf4" for s in states)


def test_evaluating_does_not_stop_gradients_through_the_frozen_base(tiny: Path) -> None:
    """One evaluation must not repack the 4-bit weights into a form without a backward pass."""
    base = load_base(str(tiny), quantization="nf4")
    adapter = Adapter(base, rank=4, alpha=8)
    scorer = LabelScorer(adapter, EMOTIC, "Which emotions?")
    torch.manual_seed(0)
    features = torch.randn(4, 16, 128)
    labels = np.eye(26, dtype=np.float32)[:4]
    learner = RecordLosses(scorer, features, labels)

    def gradient() -> torch.Tensor:
        adapter.module.train()
        loss = learner.losses([0, 1, 2, 3]).sum()
        parts = torch.autograd.grad(loss, [p for _, p in adapter.parameters])
        return torch.cat([g.flatten() for g in parts])

    before = gradient()
    scorer.all(features)
    after = gradient()
    assert float(before.norm()) > 0
    assert torch.equal(before, after)


def test_the_digest_names_the_weights(tiny: Path, tmp_path: Path) -> None:
    first = load_base(str(tiny), quantization="none").digest
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert load_base(str(copy), quantization="none").digest == first
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    assert load_base(str(copy), quantization="none").digest != first


def test_an_unknown_name_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="neither a folder nor a model"):
        load_base("nobody/no-such-model")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="SmolVLM2 checkpoint"):
        load_base(str(tmp_path), quantization="none")


def test_a_processor_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    (name,) = [f for f in ("processor_config.json",) if (copy / f).exists()]
    settings = json.loads((copy / name).read_text())
    settings["image_seq_len"] = 64
    (copy / name).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="image tokens"):
        load_base(str(copy), quantization="none")


def test_the_embedded_weights_are_those_their_record_names() -> None:
    import hashlib

    origin = json.loads((EMBEDDED / "origin.json").read_text())
    weights = (EMBEDDED / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == origin["sha256"]
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) < 10_000_000
    base = load_base("embedded")
    assert type(base.model).__name__ == "SmolVLMForConditionalGeneration"


def test_the_processor_scales_a_picture_as_pretraining_did(tiny: Path) -> None:
    base = load_base(str(tiny), quantization="none")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = base.processor.image_processor([[Image.fromarray(pixels)]], do_image_splitting=False, return_tensors="pt")[
        "pixel_values"
    ]
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.allclose(out[0, 0], expected, atol=1e-6)


def test_a_hub_snapshot_whose_processor_wants_video_parts_loads_all_the_same(tiny: Path, tmp_path: Path) -> None:
    """Published SmolVLM2 snapshots name SmolVLMProcessor, which needs torchvision for videos."""
    snapshot = tmp_path / "snapshot"
    shutil.copytree(tiny, snapshot)
    settings = json.loads((snapshot / "processor_config.json").read_text())
    image = settings.pop("image_processor")
    settings["processor_class"] = image["processor_class"] = "SmolVLMProcessor"
    (snapshot / "processor_config.json").write_text(json.dumps(settings))
    (snapshot / "preprocessor_config.json").write_text(json.dumps(image))
    tokenizer = json.loads((snapshot / "tokenizer_config.json").read_text())
    tokenizer["processor_class"] = "SmolVLMProcessor"
    (snapshot / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    plain = load_base(str(tiny), quantization="none")
    found = load_base(str(snapshot), quantization="none")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    outputs = [
        b.processor.image_processor([[Image.fromarray(pixels)]], do_image_splitting=False, return_tensors="pt")[
            "pixel_values"
        ]
        for b in (plain, found)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(plain.prompter.batch(["Which?"])[0], found.prompter.batch(["Which?"])[0])
