"""Finds and loads a model, in 4 or 8 bits or whole, and identifies it exactly."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, Idefics3Processor
from transformers.utils import logging as transformers_logging

from carefl_secure.errors import ConfigError, ModelError

_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Patterns are matched at the start of the whole module name: "vision_model" alone would skip nothing, and any list of
# ours replaces the default that keeps lm_head out of 4 bits.
TEXT_ONLY = ("model.vision_model", "model.connector", "lm_head")


@dataclass(frozen=True)
class Source:
    """A model on this machine's disk."""

    name: str  # the hub id or a folder's name
    revision: str  # the commit, or SHA-256 over configuration and weights
    folder: Path


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence loggers below errors (default: bitsandbytes and transformers) and progress bars."""
    bars = transformers_logging.is_progress_bar_enabled()
    chatty = [logging.getLogger(name) for name in loggers or ("bitsandbytes", "transformers")]
    levels = [one.level for one in chatty]
    for one in chatty:
        one.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(chatty, levels, strict=True):
            one.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def find_model(source: str, revision: str | None) -> Source:
    """Find a folder, or fetch a hub id."""
    if Path(source).is_dir():
        folder = Path(source).resolve()
        return Source(folder.name, weights_digest(folder).hex(), folder)
    folder = fetch_snapshot(source, revision, _FILES)
    return Source(source, folder.name, folder)


def fetch_snapshot(source: str, revision: str | None, files: Sequence[str]) -> Path:
    """Fetch the files of a hub id that match some patterns, or find them in the cache."""
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{source!r} is neither a folder nor a model that the hub could deliver: {error}. "
            "Check the name and the network, or download the model and give its folder."
        ) from error


def model_type(source: Source) -> str:
    """Return the kind of model that a configuration names, such as ``llava``."""
    try:
        with quiet():
            return str(AutoConfig.from_pretrained(source.folder).model_type)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.name!r} has no model configuration that can be read: {error}") from error


def find_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` names; auto: CUDA before the CPU."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if found else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(
            f"model.device={name}, but PyTorch {torch.__version__} sees {found or 'no'} CUDA devices; check the "
            "driver and CUDA_VISIBLE_DEVICES, install a CUDA build of PyTorch, or set model.device to auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("model.device=mps, but PyTorch sees no Metal device; set model.device to auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def load_model(source: Source, kind: Any, *, quantization: str, dtype: str, whole: Sequence[str]) -> Any:
    """Load a frozen model for generation, of the class ``kind``.

    ``quantization`` is ``nf4`` or ``none``: with 8 bits a caption would depend on the other images of the batch.
    ``dtype`` is ``float32``, ``bfloat16`` or ``float16``. Modules whose full names begin with one of ``whole`` stay
    out of 4 bits. `ModelError` if it cannot be loaded, is of another class, or was not quantised as asked.
    """
    if quantization not in ("nf4", "none") or dtype not in _DTYPES:
        raise ConfigError(
            f"a captioner runs with quantization nf4 or none and type {', '.join(_DTYPES)}, "
            f"not with {quantization} and {dtype}"
        )
    config, place = quantization_config(quantization, _DTYPES[dtype], whole), find_device("auto")
    try:
        with quiet():
            model = load_frozen(source.folder, config, _DTYPES[dtype], place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"cannot load a captioner from {source.name!r}: {error}") from error
    if not isinstance(model, kind):
        raise ModelError(f"{source.name!r} is a {type(model).__name__}, not a {kind.__name__}")
    if quantization == "nf4":
        layers = quantised_layers(model)
        if wrong := next((name for name in layers if name.startswith(tuple(whole))), None):
            raise ModelError(f"{wrong} of {source.name!r} was quantised; it should be whole")
        if not layers:
            raise ModelError(f"no layer of {source.name!r} was quantised; choose quantization none")
    return model


def load_processor(source: Source) -> Any:
    """Load the processor in a model's folder."""
    try:
        with quiet():
            processor = read_processor(source.folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"cannot load the processor of {source.name!r}: {error}") from error
    if getattr(processor, "tokenizer", None) is None:
        raise ModelError(f"{source.name!r} has no processor with a tokenizer beside its weights")
    processor.tokenizer.padding_side = "left"
    return processor


def quantization_config(kind: str, dtype: torch.dtype, whole: Sequence[str] = TEXT_ONLY) -> BitsAndBytesConfig | None:
    """Return how a model is stored: ``nf4``, ``int8``, or None for ``none``; modules in ``whole`` stay as they are."""
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(whole))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(whole),
    )


def load_frozen(folder: Path, config: BitsAndBytesConfig | None, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a model in evaluation mode; no parameter requires a gradient."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        quantization_config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation="sdpa",
        device_map={"": device},
    )
    model.requires_grad_(False)
    return model.eval()


def read_processor(folder: Path) -> Any:
    """Read the processor in a model's folder."""
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError:
        # SmolVLMProcessor wants torchvision and num2words, for video; for images this one reads the same files and
        # gives equal ids and pixels.
        return Idefics3Processor.from_pretrained(folder)


def quantised_layers(model: torch.nn.Module, kind: str = "nf4") -> list[str]:
    """Return the names of the layers that are quantised as ``nf4`` or ``int8``."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    found = []
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            # The packed kernel of CPUs with AVX512-BF16 has no backward pass, so that later gradients through the
            # base would vanish, and it rounds otherwise, so that another machine would give other captions.
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, Linear4bit if kind == "nf4" else Linear8bitLt):
            found.append(name)
    return found


def weights_digest(folder: Path) -> bytes:
    """Return SHA-256 over a model's configuration and weights."""
    total = hashlib.sha256()
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    for path in sorted(one for one in files if one.is_file()):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.digest()
