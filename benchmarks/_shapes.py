"""Base models in the exact shapes of SmolVLM2 with random weights, written to disk as a checkpoint is.

Speed and memory do not depend on what the weights say. The words are those of the embedded model: ids of its tokenizer
in a vocabulary of the published size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, Idefics3Processor, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from carefl_secure.model.embedded import EMBEDDED


@dataclass(frozen=True)
class Shape:
    """Widths and depths of one checkpoint, as its published configuration gives them."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vision: tuple[int, int, int, int]  # width, layers, heads, inner
    side: int
    patch: int
    scale: int


SHAPES = {
    "256M": Shape(576, 30, 9, 3, 1536, (768, 12, 12, 3072), 512, 16, 4),
    "500M": Shape(960, 32, 15, 5, 2560, (768, 12, 12, 3072), 512, 16, 4),
    "2.2B": Shape(2048, 24, 32, 32, 8192, (1152, 27, 16, 4304), 384, 14, 3),
}


def write_base(name: str, out: Path) -> Path:
    """Write a base of the shape ``name`` to ``out`` in bfloat16, unless it is there, and return ``out``."""
    if (out / "model.safetensors").is_file():
        return out
    shape = SHAPES[name]
    words = AutoProcessor.from_pretrained(EMBEDDED)
    tokenizer = words.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    width, layers, heads, inner = shape.vision
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "image_size": shape.side,
            "patch_size": shape.patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            **special,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=shape.scale,
        tie_word_embeddings=False,
        **special,
    )
    config.architectures = ["SmolVLMForConditionalGeneration"]
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in model.state_dict().items():
        weight = torch.empty(value.shape, dtype=torch.bfloat16)
        if "norm" in key or key.endswith("bias"):
            weight.fill_(0.0 if key.endswith("bias") else 1.0)
        else:
            weight.normal_(0.0, 1 / math.sqrt(value.shape[-1]), generator=generator)
        weights[key] = weight
    out.mkdir(parents=True, exist_ok=True)
    config.dtype = torch.bfloat16
    config.save_pretrained(out)
    side = {"longest_edge": shape.side}
    images = SmolVLMImageProcessorPil(do_image_splitting=False, size=side, max_image_size=side, do_resize=True)
    tokens = model.model.image_seq_len
    Idefics3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_len=tokens, chat_template=words.chat_template
    ).save_pretrained(out)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
