"""Small models of the real captioner classes, saved with their real processors; made-up images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from carefl_secure.data.records import BASIC, LabelSpace, Record
from carefl_secure.model.embedded import build_model, build_processor

# What the checkpoints of LLaVA-1.5 render: no system turn, the image before the words.
TEMPLATE = (
    "{%- for m in messages -%}{{ m.role.upper() ~ ': ' }}"
    "{%- for p in m.content if p.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for p in m.content if p.type == 'text' -%}{{ p.text ~ ' ' }}{%- endfor -%}{%- endfor -%}"
    "{{ 'ASSISTANT:' if add_generation_prompt else '' }}"
)
_SIDE, _PATCH = 56, 14


def _llava_processor() -> LlavaProcessor:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["USER: <image>\nDescribe the place. ASSISTANT: a person in a park beside a tree"] * 2,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<s>", "</s>", "<image>", "<pad>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessorPil(
        do_center_crop=True, crop_size={"height": _SIDE, "width": _SIDE}, size={"shortest_edge": _SIDE}, resample=3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("captioners") / "llava"
    processor = _llava_processor()
    tok = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=_SIDE,
            patch_size=_PATCH,
            projection_dim=64,
        ).to_dict(),
        text_config=LlamaConfig(
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=len(tok),
            max_position_embeddings=1024,
            pad_token_id=tok.pad_token_id,
            bos_token_id=1,
            eos_token_id=2,
        ).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_seq_length=(_SIDE // _PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tok.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # random models are nearly constant; this one looks at the image
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SmolVLM2 of the embedded shape, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("captioners") / "smolvlm"
    processor = build_processor()
    model = build_model(processor, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@dataclass
class Pictures:
    """A corpus in memory."""

    records: list[Record]
    images: list[Image.Image]
    space: LabelSpace = BASIC
    name: str = "pictures"

    def image(self, index: int) -> Image.Image:
        return self.images[index]


@pytest.fixture
def pictures() -> Callable[..., Pictures]:
    """Make a corpus of noise; equal seeds are equal pictures."""

    def make(*seeds: int, labels: list[tuple[int, ...]] | None = None) -> Pictures:
        images = [
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))
            for seed in seeds
        ]
        records = [
            Record(f"key-{i}", (i % 7,) if labels is None else labels[i], box=(10, 5, 40, 30))
            for i in range(len(seeds))
        ]
        return Pictures(records, images)

    return make


@dataclass
class Parrot:
    """A captioner that counts, and says something one can search for."""

    batch: int = 3
    facts: Mapping[str, str | int | float | None] = field(
        default_factory=lambda: {"model": "parrot", "revision": "1", "prompt": "say"}
    )
    calls: list[int] = field(default_factory=list)
    stop_after: int | None = None

    def caption(self, images: list[Image.Image]) -> list[str]:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        return [f"zebra {np.asarray(one).sum()} near a lighthouse" for one in images]


@pytest.fixture
def parrot() -> type[Parrot]:
    return Parrot
