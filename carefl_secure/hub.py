"""Finds and loads a captioning model, in 4 bits or whole, and identifies it exactly."""

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


@dataclass(frozen=True)
class Source:
    """A model on this machine's disk.

    ``name`` is the hub id or a folder's name; ``revision`` the commit, or SHA-256 over configuration and weights.
    """

    name: str
    revision: str
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
        return Source(folder.name, _digest(folder), folder)
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
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` names.

    ``auto`` is the present CUDA device where there is one, else the CPU. A missing one raises `ConfigError`.
    """
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
    config = None
    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_DTYPES[dtype],
            llm_int8_skip_modules=list(whole),
        )
    try:
        with quiet():
            model = AutoModelForImageTextToText.from_pretrained(
                source.folder,
                quantization_config=config,
                dtype=_DTYPES[dtype],
                use_safetensors=True,
                attn_implementation="sdpa",
                device_map={"": find_device("auto")},
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"cannot load a captioner from {source.name!r}: {error}") from error
    if not isinstance(model, kind):
        raise ModelError(f"{source.name!r} is a {type(model).__name__}, not a {kind.__name__}")
    model.requires_grad_(False)
    model.eval()
    if quantization == "nf4":
        _check_quantised(model, source, whole)
    return model


def load_processor(source: Source) -> Any:
    """Load the processor in a model's folder."""
    try:
        with quiet():
            try:
                processor = AutoProcessor.from_pretrained(source.folder)
            except ImportError:
                # SmolVLMProcessor wants torchvision and num2words, for video; for images this one
                # reads the same files and gives equal ids and pixels.
                processor = Idefics3Processor.from_pretrained(source.folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"cannot load the processor of {source.name!r}: {error}") from error
    if getattr(processor, "tokenizer", None) is None:
        raise ModelError(f"{source.name!r} has no processor with a tokenizer beside its weights")
    processor.tokenizer.padding_side = "left"
    return processor


def _check_quantised(model: torch.nn.Module, source: Source, whole: Sequence[str]) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    found = 0
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found += 1
            if any(name.startswith(part) for part in whole):
                raise ModelError(f"{name} of {source.name!r} was quantised; it should be whole")
            # The packed kernel of some CPUs rounds otherwise and refuses odd widths: with it the
            # same model would give other captions on another machine.
            module.support_avx512bf16_for_cpu = False
    if not found:
        raise ModelError(f"no layer of {source.name!r} was quantised; choose quantization none")


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    for path in sorted(one for one in files if one.is_file()):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()
