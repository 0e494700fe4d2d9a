"""The small SmolVLM that ships with the package: its architecture, tokenizer and folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from carefl_secure.data.records import SPACES
from carefl_secure.data.synthetic.scene import GROUPS

EMBEDDED = Path(__file__).parent / "embedded_weights"
"""Folder of the shipped weights, tokenizer and their record of origin."""

QUESTIONS = {
    "emotic": "Which emotions does the person feel?",
    "basic": "Which basic expression is it?",
    "compound": "Which compound expression is it?",
    **{group: f"Which {group}?" for group in GROUPS},
}
"""Every question that the embedded model was trained on, by task or factor group."""

_WORDS = (
    "Yes No None Context Describe the scene. The person shows an emotion. A photo of a face. "
    "Which expression does the person show? Answer with one label. Choose from the list. "
    "man woman child street school car people group smiling looking standing sitting arms"
)
_TEMPLATE = (
    "<|im_start|>{%- for m in messages -%}{{ m.role | capitalize }}:"
    "{{ '' if m.content[0].type == 'image' else ' ' }}"
    "{%- for part in m.content -%}{{ '<image>' if part.type == 'image' else part.text }}"
    "{%- endfor -%}{{ '<end_of_utterance>\n' }}{%- endfor -%}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
]
_IMAGE = 64


def _tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-pair tokenizer: every label word becomes one token; deterministic."""
    words = [label for space in SPACES.values() for label in space.labels]
    words += [value for values in GROUPS.values() for value in values]
    lines = [f"Assistant: {word}, {word}. {word}" for word in words for _ in range(4)]
    lines += [f"User:{q} Context: {q}\nAssistant: None" for q in QUESTIONS.values()] * 4
    lines += [_WORDS] * 4
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=1152,
            special_tokens=_SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            min_frequency=2,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
        padding_side="left",
        chat_template=_TEMPLATE,
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )


def build_processor() -> Idefics3Processor:
    """Build the processor of the embedded model: one tile of 64 x 64, sixteen image tokens."""
    images = SmolVLMImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": _IMAGE},
        max_image_size={"longest_edge": _IMAGE},
        do_resize=True,
    )
    return Idefics3Processor(image_processor=images, tokenizer=_tokenizer(), image_seq_len=16, chat_template=_TEMPLATE)


def build_model(processor: Idefics3Processor, seed: int) -> SmolVLMForConditionalGeneration:
    """Build the embedded model with random weights; widths are multiples of 64, as every 4-bit kernel needs."""
    tok = processor.tokenizer
    special = {"pad_token_id": tok.pad_token_id, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": _IMAGE,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tok),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            **special,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        **special,
    )
    torch.manual_seed(seed)
    return SmolVLMForConditionalGeneration(config)
