"""Loads a base model: the embedded one, a folder, or a hub id; in 4 bits, 8 bits or whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from carefl_secure import hub
from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.hub import quantization_config as quantization_config  # of a base, for runs too
from carefl_secure.model.embedded import EMBEDDED
from carefl_secure.model.prompts import Prompter, PromptForm
from carefl_secure.model.vision.shards import cache_folder
from carefl_secure.model.vision.store import FeatureStore
from carefl_secure.model.vision.tiles import cut_images

Item = TypeVar("Item")
Found = TypeVar("Found")


class ParallelBatches:
    """A ``map`` that works on ``count`` items at once, one torch thread for each.

    The layers of a small model are too short for torch's own threads. A large model fills the cores by itself: a count
    of 1 works in the calling thread with torch's own threads. Each item in work has activations of its own.

    Guarantees
    ----------
    Results come in the order of the items, so a sum over them does not depend on which was ready
    first. An error of any item is raised, that of the first failed one, after all have ended.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ConfigError(f"there must be at least one batch at a time, not {count}")
        self._count = count

    def __call__(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Return ``function``, which sets torch's gradient mode, of each item in order; a few are taken ahead."""
        work = iter(items)
        first = list(islice(work, 2 * self._count)) if self._count > 1 else []
        if len(first) < 2:
            return map(function, chain(first, work))
        return self._side_by_side(function, first, work)

    def _side_by_side(
        self, function: Callable[[Item], Found], first: list[Item], work: Iterator[Item]
    ) -> Iterator[Found]:
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(min(self._count, len(first)), "batch", torch.set_num_threads, (1,)) as pool:
                waiting = deque(pool.submit(function, item) for item in first)
                while waiting:
                    found = waiting.popleft().result()
                    waiting.extend(pool.submit(function, item) for item in islice(work, 1))
                    yield found
        finally:
            torch.set_num_threads(before)  # new threads take the number that was set last


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Base:
    """A frozen base model with what belongs to it; no parameter requires a gradient."""

    model: Any
    processor: Any
    prompter: Prompter
    digest: bytes  # SHA-256 over configuration and weights: clients refuse a base with another one
    dtype: torch.dtype
    source: str  # what the user asked for: embedded, a folder or a hub id
    parallel_batches: ParallelBatches
    device: torch.device  # where the model is
    features: FeatureStore  # what its vision side made of images, on the CPU or on disk
    states: FeatureStore  # what its language model made of images with captions


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

    `ConfigError` if the device is not there or cannot hold the quantised layers, or images cannot be cut so.
    `ModelError` if the source cannot be read or is no SmolVLM, its processor does not fit it, or nothing was quantised
    as asked.

    Parameters
    ----------
    source : str
        ``embedded``, a folder written by ``save_pretrained``, or a hub id such as
        ``HuggingFaceTB/SmolVLM2-256M-Video-Instruct``.
    revision : str, optional
        Commit of the hub id; pin it for real runs.
    quantization : {"nf4", "int8", "none"}
        ``nf4`` is bitsandbytes NF4 with double quantisation of the text model; all else stays whole.
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
    """
    folder = base_folder(source, revision)
    if compute_dtype == "auto":
        compute_dtype = "float32" if source == "embedded" else "bfloat16"
    dtype = _DTYPES[compute_dtype]
    place = hub.find_device(device)
    if place.type == "mps" and quantization != "none":
        raise ConfigError("bitsandbytes quantises no layer on model.device=mps; set model.quantization=none, or cpu")
    config = quantization_config(quantization, dtype)
    try:
        with hub.quiet("bitsandbytes"):
            model = hub.load_frozen(folder, config, dtype, place)
            processor = hub.read_processor(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"cannot load a vision-language model from {source!r}: {error}. Give a SmolVLM2 checkpoint: a hub id, a "
            "folder written by save_pretrained, or 'embedded'."
        ) from error
    form = form or PromptForm()
    processor.tokenizer.padding_side = "left"
    cut_images(processor, form)
    model.config.use_cache = False
    if quantization != "none":
        layers = hub.quantised_layers(model, quantization)
        if wrong := next((name for name in layers if "text_model" not in name), None):
            raise ModelError(f"{wrong} was quantised; only the text model should be")
        if not layers:
            raise ModelError(
                f"quantization {quantization!r} was asked for but no layer was quantised; "
                "set model.quantization=none for a model without linear text layers"
            )
    _check_fit(model, processor, source)
    several = source == "embedded" and quantization != "int8" and place.type == "cpu"
    # A small model gains from a worker for each of torch's threads, up to four.
    chosen = ParallelBatches(parallel_batches or (min(4, torch.get_num_threads()) if several else 1))
    ends = source != "embedded" if form.end_answers is None else form.end_answers
    prompter = Prompter(processor, end_answers=ends)
    digest = hub.weights_digest(folder)
    facts = {
        "base": source,
        "digest": digest.hex(),
        "dtype": str(dtype),
        "processor": processor.image_processor.to_json_string(),
        "version": 1,
    }
    shape = (int(processor.image_seq_len), int(model.config.text_config.hidden_size))
    kept = cache_folder(feature_cache)
    store = FeatureStore(kept, facts, shape, dtype)
    read = {**facts, "base": f"{source}, states of texts", "quantization": quantization, "reads": "text"}
    states = FeatureStore(kept, read, (1, shape[1]), torch.float32)
    return Base(model, processor, prompter, digest, dtype, source, chosen, place, store, states)


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
    return hub.fetch_snapshot(source, revision, _FILES)


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
