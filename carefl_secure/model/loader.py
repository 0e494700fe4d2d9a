"""Loads a base model: the embedded one, a folder, or a hub id; in 4 bits, 8 bits or whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, Idefics3Processor

from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.hub import fetch_snapshot, find_device, quiet
from carefl_secure.model.embedded import EMBEDDED
from carefl_secure.model.parallel import ParallelBatches
from carefl_secure.model.prompts import Prompter, PromptForm
from carefl_secure.model.vision.shards import cache_folder
from carefl_secure.model.vision.store import FeatureStore
from carefl_secure.model.vision.tiles import cut_images

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Patterns are matched at the start of the whole module name: "vision_model" alone would skip
# nothing, and any list of ours replaces the default that keeps lm_head out of 4 bits.
_WHOLE = ["model.vision_model", "model.connector", "lm_head"]
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Base:
    """A frozen base model with what belongs to it; no parameter requires a gradient.

    ``digest`` is SHA-256 over configuration and weights: clients refuse a base with another one.
    ``source`` is what the user asked for: ``embedded``, a folder or a hub id. The model is on
    ``device``; ``features`` holds what its vision side made of images, on the CPU or on disk.
    """

    model: Any
    processor: Any
    prompter: Prompter
    digest: bytes
    dtype: torch.dtype
    source: str
    parallel_batches: ParallelBatches
    device: torch.device
    features: FeatureStore


def load_base(
    source: str = "embedded",
    *,
    revision: str | None = None,
    quantization: str = "nf4",
    compute_dtype: str = "float32",
    parallel_batches: int | None = None,
    form: PromptForm | None = None,
    device: str = "cpu",
    feature_cache: Path | str | None = None,
) -> Base:
    """Load a SmolVLM2-like base model and freeze it.

    Parameters
    ----------
    source : str
        ``embedded``, a folder written by ``save_pretrained``, or a hub id such as
        ``HuggingFaceTB/SmolVLM2-256M-Video-Instruct``.
    revision : str, optional
        Commit of the hub id; pin it for real runs.
    quantization : {"nf4", "int8", "none"}
        ``nf4`` is bitsandbytes NF4 with double quantisation of the text model. Vision tower,
        connector and head stay whole.
    compute_dtype : {"auto", "float32", "bfloat16"}
        ``auto`` is float32 for the embedded base and bfloat16 for any other.
    parallel_batches : int, optional
        Batches in the model at once; by default as many as the small embedded model gains from on a
        CPU, and 1 for any other and for int8, whose layers keep a state.
    form : PromptForm, optional
        How images and answers stand in a prompt.
    device : str
        See `find_device`.
    feature_cache : path, optional
        Folder of vision features on disk, or ``auto`` (`cache_folder`); by default they are kept in memory.

    Raises
    ------
    ConfigError
        If the device is not there, or cannot hold the quantised layers, or images cannot be cut so.
    ModelError
        If the source cannot be read, is not a SmolVLM, its processor does not fit it, or nothing
        was quantised although it was asked for.
    """
    folder = base_folder(source, revision)
    dtype = compute_type(source, compute_dtype)
    place = find_device(device)
    if place.type == "mps" and quantization != "none":
        raise ConfigError("bitsandbytes quantises no layer on model.device=mps; set model.quantization=none, or cpu")
    config = quantization_config(quantization, dtype)
    try:
        with quiet("bitsandbytes"):
            model = AutoModelForImageTextToText.from_pretrained(
                folder,
                quantization_config=config,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="sdpa",
                device_map={"": place},
            )
            processor = _processor(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"cannot load a vision-language model from {source!r}: {error}. Give a SmolVLM2 checkpoint: a hub id, a "
            "folder written by save_pretrained, or 'embedded'."
        ) from error
    form = form or PromptForm()
    cut_images(processor, form)
    model.requires_grad_(False)
    model.config.use_cache = False
    model.eval()
    _check_quantised(model, quantization)
    _check_fit(model, processor, source)
    several = source == "embedded" and quantization != "int8" and place.type == "cpu"
    chosen = (
        ParallelBatches.for_small() if parallel_batches is None and several else ParallelBatches(parallel_batches or 1)
    )
    ends = source != "embedded" if form.end_answers is None else form.end_answers
    prompter = Prompter(processor, end_answers=ends)
    digest = _digest(folder)
    facts = {
        "base": source,
        "digest": digest.hex(),
        "dtype": str(dtype),
        "processor": processor.image_processor.to_json_string(),
        "version": 1,
    }
    shape = (int(processor.image_seq_len), int(model.config.text_config.hidden_size))
    store = FeatureStore(cache_folder(feature_cache), facts, shape, dtype)
    return Base(model, processor, prompter, digest, dtype, source, chosen, place, store)


def compute_type(source: str, name: str) -> torch.dtype:
    """Return the type that a base computes in; ``auto`` is float32 for the embedded one alone."""
    return _DTYPES[("float32" if source == "embedded" else "bfloat16") if name == "auto" else name]


def base_folder(source: str, revision: str | None) -> Path:
    """Return the folder that a base is loaded from; a hub id is fetched, or found in the cache."""
    if source == "embedded":
        if not (EMBEDDED / "model.safetensors").exists():
            raise ModelError(
                "the embedded weights are missing from this installation; "
                "make them with 'carefl-secure pretrain', or reinstall the package"
            )
        return EMBEDDED
    if Path(source).is_dir():
        return Path(source)
    return fetch_snapshot(source, revision, _FILES)


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return how the base is stored; None for ``none``."""
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WHOLE)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_WHOLE,
    )


def _processor(folder: Path) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except ImportError:
        # SmolVLMProcessor wants torchvision and num2words for video; for images the Idefics3
        # processor reads the same files and gives equal ids and pixels.
        processor = Idefics3Processor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return processor


def _check_quantised(model: nn.Module, kind: str) -> None:
    if kind == "none":
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    wanted = Linear4bit if kind == "nf4" else Linear8bitLt
    found = 0
    for name, module in model.named_modules():
        if isinstance(module, wanted):
            found += 1
            if "text_model" not in name:
                raise ModelError(f"{name} was quantised; only the text model should be")
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 one evaluation would repack the weights for a kernel
            # without a backward pass, and later gradients through the base would vanish.
            module.support_avx512bf16_for_cpu = False
    if not found:
        raise ModelError(
            f"quantization {kind!r} was asked for but no layer was quantised; "
            "set model.quantization=none for a model without linear text layers"
        )


def _check_fit(model: Any, processor: Any, source: str) -> None:
    inner = getattr(model, "model", None)
    tokens = getattr(inner, "image_seq_len", None)
    if tokens is None or not hasattr(inner, "text_model"):
        raise ModelError(f"{source!r} is a {type(model).__name__}, not a SmolVLM-like model")
    if processor.image_seq_len != tokens:
        raise ModelError(
            f"the processor of {source!r} writes {processor.image_seq_len} image tokens, "
            f"the model makes {tokens}; take both from the same checkpoint"
        )
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    if image_id != model.config.image_token_id:
        raise ModelError(f"processor and model of {source!r} disagree on the id of <image>")


def _digest(folder: Path) -> bytes:
    total = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.digest()
