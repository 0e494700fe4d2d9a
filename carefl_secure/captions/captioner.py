"""Models that describe an image: LLaVA-1.5, and any SmolVLM2 where memory is short.

Decoding is greedy, so the same model says the same of the same image. A batch is always filled up
to its size (with copies of its last image), so that the shapes of the sums, and with them their
rounding, do not depend on how many images were left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, SmolVLMForConditionalGeneration

from carefl_secure.captions.cache import Facts
from carefl_secure.captions.prompts import plain
from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.hub import Source, find_model, load_model, load_processor, model_type, quiet

LLAVA = "llava-hf/llava-1.5-7b-hf"
"""The captioner of the published method; its weights are under the Llama 2 Community License."""

_VERSION = 1  # raised whenever the same model would say something else


class Captioner(Protocol):
    """Puts images into words."""

    @property
    def facts(self) -> Facts:
        """All that decides a caption besides the picture: a cache is named by it."""

    @property
    def batch(self) -> int:
        """Images per call."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """Return one caption for each of at most :attr:`batch` RGB images."""


class _Generating:
    """What both models share: one prompt, one image each, greedy decoding."""

    kind: type[Any]
    whole: tuple[str, ...]

    def __init__(self, source: Source, options: dict[str, Any], batch: int) -> None:
        if batch < 1 or options["max_new_tokens"] < 1:
            raise ConfigError("a captioner takes at least one image and says at least one token")
        model = load_model(
            source, self.kind, quantization=options["quantization"], dtype=options["dtype"], whole=self.whole
        )
        processor = load_processor(source)
        self._fit(source, model, processor)
        self._model, self._processor = model, processor
        self.batch = batch
        self.facts: Facts = {"model": source.name, "revision": source.revision, "version": _VERSION, **options}
        self._decoding = copy.deepcopy(model.generation_config)
        unused = dict.fromkeys(("temperature", "top_p", "top_k", "max_length"))
        longest, padding = options["max_new_tokens"], processor.tokenizer.pad_token_id
        self._decoding.update(do_sample=False, num_beams=1, **unused, max_new_tokens=longest, pad_token_id=padding)
        self._text = self._prompt(str(options["prompt"]))

    def _prompt(self, text: str) -> str:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        try:
            return str(self._processor.apply_chat_template([turn], add_generation_prompt=True))
        except ValueError as error:
            raise ModelError(f"the processor has no chat template: {error}") from error

    def _fit(self, source: Source, model: Any, processor: Any) -> None:
        """Complete the processor, and refuse one that does not fit its model."""
        raise NotImplementedError

    def _inputs(self, images: list[Image.Image]) -> Any:
        raise NotImplementedError

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """Return one caption for each image; there are 1 to :attr:`batch` of them."""
        if not 1 <= len(images) <= self.batch:
            raise ConfigError(f"{len(images)} images were given; 1 to {self.batch} fit a batch")
        full = [image.convert("RGB") for image in images]
        full += [full[-1]] * (self.batch - len(full))
        inputs = self._inputs(full).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode(), quiet():
            out = self._model.generate(**inputs, generation_config=self._decoding)
        said = self._processor.tokenizer.batch_decode(
            out[: len(images), inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [plain(one) for one in said]


class LlavaCaptioner(_Generating):
    r"""LLaVA-1.5: ``USER: <image>\nPROMPT ASSISTANT:``."""

    kind = LlavaForConditionalGeneration
    whole = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

    def _fit(self, source: Source, model: Any, processor: Any) -> None:
        # Old snapshots leave out what the processor needs to write one mark for each patch.
        if getattr(processor, "patch_size", None) is None:
            processor.patch_size = model.config.vision_config.patch_size
            processor.num_additional_image_tokens = 1
        if getattr(processor, "vision_feature_select_strategy", None) is None:
            strategy = model.config.vision_feature_select_strategy
            processor.vision_feature_select_strategy = strategy
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        if image != model.config.image_token_id:
            raise ModelError(f"processor and model of {source.name!r} disagree on <image>")

    def _inputs(self, images: list[Image.Image]) -> Any:
        return self._processor(images=images, text=[self._text] * len(images), padding=True, return_tensors="pt")


class SmolVlmCaptioner(_Generating):
    """Any SmolVLM2, the option for a client without a large graphics card; images stay one tile."""

    kind = SmolVLMForConditionalGeneration
    whole = ("model.vision_model", "model.connector", "lm_head")

    def _fit(self, source: Source, model: Any, processor: Any) -> None:
        if processor.image_seq_len != model.model.image_seq_len:
            raise ModelError(
                f"the processor of {source.name!r} writes {processor.image_seq_len} image tokens, "
                f"the model makes {model.model.image_seq_len}; take both from one checkpoint"
            )

    def _inputs(self, images: list[Image.Image]) -> Any:
        return self._processor(
            images=[[image] for image in images],
            text=[self._text] * len(images),
            do_image_splitting=False,
            padding=True,
            return_tensors="pt",
        )


_KINDS: dict[str, type[_Generating]] = {"llava": LlavaCaptioner, "smolvlm": SmolVlmCaptioner}


def load_captioner(
    model: str,
    prompt: str,
    *,
    revision: str | None = None,
    quantization: str = "nf4",
    dtype: str = "auto",
    max_new_tokens: int = 64,
    batch: int = 4,
) -> Captioner:
    """Load the captioner that a hub id or folder holds: a LLaVA-1.5 or a SmolVLM2; else raise `ModelError`.

    ``prompt`` is the text of :func:`~carefl_secure.captions.prompts.caption_prompt`. Pin the ``revision`` (commit) of
    a hub id for real runs. ``quantization`` is ``nf4`` or ``none``; ``dtype`` is ``float32``, ``bfloat16``,
    ``float16`` or ``auto``: float16 on a graphics card, bfloat16 on a CPU.
    """
    source = find_model(model, revision)
    kind = model_type(source)
    if kind not in _KINDS:
        raise ModelError(
            f"{model!r} is a {kind}; captions are made by LLaVA-1.5 ({LLAVA}) or a SmolVLM2 "
            "(HuggingFaceTB/SmolVLM2-256M-Video-Instruct)"
        )
    if dtype == "auto":
        dtype = "float16" if torch.cuda.is_available() else "bfloat16"
    options = {"prompt": prompt, "quantization": quantization, "dtype": dtype, "max_new_tokens": max_new_tokens}
    return _KINDS[kind](source, options, batch)
