"""Reads a saved adapter back from the PEFT folder that a run wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from carefl_secure.errors import ModelError, NonFiniteError
from carefl_secure.hub import quiet
from carefl_secure.model.lora import Adapter

_SETTINGS = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora")


def load_saved(adapter: Adapter, folder: Path) -> npt.NDArray[np.float32]:
    """Load a folder that :meth:`Adapter.save` wrote, A and B; return the values [dimension].

    The adapter must have the settings of the run that wrote the folder. Only
    ``adapter_model.safetensors`` is read: no pickle is ever opened.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the settings differ, a weight is missing, unexpected or of
        another shape. The adapter is then as it was.
    NonFiniteError
        If a weight is NaN or infinite.
    """
    _check_settings(adapter, folder)
    tensors = _read(folder / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(adapter.module)
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"holds {unexpected[0]}, which has no place"
        raise ModelError(
            f"the adapter in {folder} {what} ({len(missing)} weights missing, {len(unexpected)} "
            "unexpected); take the adapter settings and the base of the run that wrote it"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ModelError(
                f"weight {name} in {folder} is {tensor.dtype} {list(tensor.shape)}, expected "
                f"{expected[name].dtype} {list(expected[name].shape)}; take the run's own settings"
            )
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"weight {name} in {folder} holds NaN or infinity; not loaded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Any = set_peft_model_state_dict(adapter.module, tensors)
    lost = [name for name in result.missing_keys if "lora_" in name]
    if result.unexpected_keys or lost:
        raise ModelError(
            f"peft did not place {(result.unexpected_keys or lost)[0]} of {folder}; "
            "install the peft version that this package asks for"
        )
    return adapter.vector()


def merge(adapter: Adapter) -> None:
    """Add an adapter to the weights of its base, in place.

    The base must be whole (ModelError): merging into 4 bits would quantise the sum anew, which
    changes logits by a fifth.
    """
    if any(getattr(adapter.base.model, name, False) for name in ("is_loaded_in_4bit", "is_loaded_in_8bit")):
        raise ModelError("an adapter is merged into a whole base only; load it with quantization=none")
    adapter.module.merge_adapter()


def save_merged(adapter: Adapter, folder: Path) -> None:
    """Write a merged base in bfloat16, with its processor; the adapter is used up."""
    merged: Any = adapter.module.unload()
    with quiet():
        merged.to(torch.bfloat16).save_pretrained(folder)
        adapter.base.processor.save_pretrained(folder)


def _check_settings(adapter: Adapter, folder: Path) -> None:
    path = folder / "adapter_config.json"
    try:
        saved: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} holds no adapter (no {path.name}); finish the run, with --resume where it was interrupted"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore it from a copy") from error
    held = adapter.module.peft_config["default"].to_dict()
    for name in _SETTINGS:
        mine = getattr(held[name], "value", held[name])
        theirs = saved.get(name) if isinstance(saved, dict) else None
        if theirs != mine:
            raise ModelError(
                f"{path} says {name} {theirs!r}, but the settings make it {mine!r}; take the "
                "settings of the run that wrote the adapter"
            )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the adapter weights {path} cannot be read: {error}; restore them from a copy") from error
