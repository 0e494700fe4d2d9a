"""LLaVA and SmolVLM2 captioners on small models of those classes, loaded from disk, 4 bits too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, SmolVLMForConditionalGeneration

from carefl_secure.captions.captioner import LlavaCaptioner, SmolVlmCaptioner, load_captioner
from carefl_secure.errors import ConfigError, ModelError

PROMPT = "Describe the place."


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(params=["llava", "smolvlm"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def load(folder: Path, **options: object) -> LlavaCaptioner | SmolVlmCaptioner:
    chosen = {"dtype": "float32", "max_new_tokens": 8, "batch": 2, **options}
    made = load_captioner(str(folder), PROMPT, **chosen)  # type: ignore[arg-type]
    assert isinstance(made, LlavaCaptioner | SmolVlmCaptioner)
    return made


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_image_gets_its_own_words_each_time(folder: Path, quantization: str) -> None:
    captioner = load(folder, quantization=quantization)
    first = captioner.caption([noise(0), noise(1)])
    assert first == captioner.caption([noise(0), noise(1)])
    assert first == load(folder, quantization=quantization).caption([noise(0), noise(1)])
    assert all(first) and first[0] != first[1]


def test_an_image_is_captioned_alike_alone_and_in_a_batch(folder: Path) -> None:
    captioner = load(folder, batch=3)
    together = captioner.caption([noise(i) for i in range(3)])
    assert [captioner.caption([noise(i)])[0] for i in range(3)] == together


def test_a_batch_always_has_its_full_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, sizes = load(folder, batch=3), []
    original = captioner._inputs

    def watched(images: list[Image.Image]) -> object:
        sizes.append(len(images))
        return original(images)

    monkeypatch.setattr(captioner, "_inputs", watched)
    for count in (1, 2, 3):
        assert len(captioner.caption([noise(i) for i in range(count)])) == count
    assert sizes == [3, 3, 3]


def test_four_bits_reach_the_text_model_and_nothing_else(folder: Path) -> None:
    model = load(folder, quantization="nf4")._model
    quantised = [name for name, m in model.named_modules() if isinstance(m, Linear4bit)]
    assert quantised and all("language_model" in n or "text_model" in n for n in quantised)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert [n for n in linear if "vision" in n and n not in quantised]
    assert "lm_head" not in quantised
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert not any(m.support_avx512bf16_for_cpu for m in layers)
    whole = load(folder, quantization="none")._model
    assert not any(isinstance(m, Linear4bit) for m in whole.modules())


def test_they_are_the_real_classes_with_the_real_prompts(llava: Path, smolvlm: Path) -> None:
    large, small = load(llava), load(smolvlm)
    assert isinstance(large._model, LlavaForConditionalGeneration)
    assert large._text == f"USER: <image>\n{PROMPT} ASSISTANT:"
    assert isinstance(small._model, SmolVLMForConditionalGeneration)
    assert small._text == f"<|im_start|>User:<image>{PROMPT}<end_of_utterance>\nAssistant:"


def test_greedy_even_where_the_checkpoint_says_otherwise(llava: Path, tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    shutil.copytree(llava, warm)
    path = warm / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": True, "temperature": 1.9, "top_p": 0.9}
    path.write_text(json.dumps(settings))
    assert load(warm).caption([noise(0)]) == load(llava).caption([noise(0)])


def test_an_old_llava_snapshot_without_patch_size_works(llava: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(llava, old)
    path = old / "processor_config.json"
    settings = json.loads(path.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings))
    assert load(old).caption([noise(0)]) == load(llava).caption([noise(0)])


def test_a_large_image_stays_one_tile(smolvlm: Path, tmp_path: Path) -> None:
    """The checkpoints of SmolVLM2 would cut a photograph into thirteen."""
    cutting = tmp_path / "smolvlm"
    shutil.copytree(smolvlm, cutting)
    path = cutting / "processor_config.json"
    settings = json.loads(path.read_text())
    assert settings["image_processor"]["do_image_splitting"] is False
    settings["image_processor"] |= {"do_image_splitting": True, "size": {"longest_edge": 128}}
    path.write_text(json.dumps(settings))
    captioner = load(cutting)
    whole = captioner._processor(images=[[noise(0)]], text=[captioner._text], return_tensors="pt")
    assert whole["pixel_values"].shape[1] > 1  # left to itself it cuts
    assert captioner._inputs([noise(0)])["pixel_values"].shape[1] == 1
    assert captioner.caption([noise(0)])[0]


def test_a_processor_that_wants_video_libraries_is_read_as_one_for_images(smolvlm: Path, tmp_path: Path) -> None:
    hub = tmp_path / "smolvlm"
    shutil.copytree(smolvlm, hub)
    settings = json.loads((hub / "processor_config.json").read_text())
    image = settings.pop("image_processor") | {"processor_class": "SmolVLMProcessor"}
    tokenizer = json.loads((hub / "tokenizer_config.json").read_text())
    for name, content in (
        ("processor_config.json", settings),
        ("preprocessor_config.json", image),
        ("tokenizer_config.json", tokenizer),
    ):
        (hub / name).write_text(json.dumps(content | {"processor_class": "SmolVLMProcessor"}))
    with pytest.raises(ImportError):
        AutoProcessor.from_pretrained(hub)
    assert load(hub).caption([noise(0)]) == load(smolvlm).caption([noise(0)])


def test_the_default_type_runs_here(folder: Path) -> None:
    captioner = load(folder, dtype="auto")
    assert captioner.facts["dtype"] == ("float16" if torch.cuda.is_available() else "bfloat16")
    assert captioner.caption([noise(0), noise(1)])[0]


def test_the_facts_name_all_that_decides_a_caption(llava: Path, tmp_path: Path) -> None:
    facts = load(llava).facts
    assert facts["model"] == "llava" and len(str(facts["revision"])) == 64
    assert str(llava.parent) not in json.dumps(dict(facts))
    for change in ({"quantization": "none"}, {"dtype": "bfloat16"}, {"max_new_tokens": 9}):
        assert load(llava, **change).facts != facts
    assert load(llava, batch=1).facts == facts
    assert load_captioner(str(llava), "Else?", dtype="float32", max_new_tokens=8).facts != facts
    other = tmp_path / "llava"
    shutil.copytree(llava, other)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert load(other).facts["revision"] != facts["revision"]


def test_what_is_no_captioner_is_refused(llava: Path, smolvlm: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor"):
        load_captioner("nobody/has-this-model", PROMPT)
    with pytest.raises(ModelError, match="configuration"):
        load_captioner(str(tmp_path), PROMPT)
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=r"LLaVA-1\.5"):
        load_captioner(str(other), PROMPT)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(llava / "config.json", bare)
    with pytest.raises(ModelError, match="cannot load"):
        load_captioner(str(bare), PROMPT)
    for options in ({"quantization": "int8"}, {"dtype": "int4"}, {"batch": 0}):
        with pytest.raises(ConfigError):
            load(smolvlm, **options)
    captioner = load(smolvlm)
    for count in (0, 3):
        with pytest.raises(ConfigError, match="fit a batch"):
            captioner.caption([noise(0)] * count)
