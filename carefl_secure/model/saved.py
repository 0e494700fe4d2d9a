"""Reads a saved adapter back from the PEFT folder that a run wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from carefl_secure.errors import ModelError, NonFiniteError
from carefl_secure.hub import quiet
from carefl_secure.model.label_head import HEAD_FILE, HEAD_SETTINGS, OLDER_SETTINGS
from carefl_secure.model.lora import Adapter
from carefl_secure.model.weights import read_weights, saving_to
from carefl_secure.strict_json import check_digest, load_json

_SETTINGS = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora")


def load_saved(adapter: Adapter, folder: Path) -> npt.NDArray[np.float32]:
    """Load a folder that :meth:`Adapter.save` wrote, A and B; return the values [dimension].

    The adapter must have the settings of the run that wrote the folder; a label head takes the labels that it names.
    Only safetensors and JSON are read: no pickle is ever opened. `ModelError` if a file is missing or damaged, the
    settings differ, or a weight is missing, unexpected or of another shape: the adapter is then as it was.
    `NonFiniteError` if a weight is NaN or infinite.
    """
    _check_settings(adapter, folder)
    tensors = read_weights(folder / "adapter_model.safetensors")
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
    load_head(adapter, folder)
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


def load_head(adapter: Adapter, folder: Path) -> None:
    """Load the label head alone, as `load_saved` does, where adapter and folder have one."""
    head, path = adapter.head, folder / HEAD_FILE
    if head is None and not path.exists():
        return
    if head is None or not path.exists():
        raise ModelError(
            f"the adapter in {folder} has {'no' if head else 'a'} label head, but the settings ask for "
            f"{'one' if head else 'none'}; take the settings of the run that wrote the adapter"
        )
    about, tensors = {**OLDER_SETTINGS, **_json(folder / HEAD_SETTINGS)}, read_weights(path)
    labels = about.get("labels")
    if not isinstance(labels, list) or len(set(map(str, labels))) < len(labels):
        raise ModelError(f"the label head in {folder} does not name its labels; restore it from a copy")
    if not isinstance(about["constant"], int | float):
        raise ModelError(f"the label head in {folder} states no number as its constant; restore it from a copy")
    if "noisy" not in about:  # version 0.1.0, where the shape of the reduction shows it
        shape = tensors["reduction"].shape if "reduction" in tensors else None
        about["noisy"] = head.with_settings({**about, "noisy": True}).reduction.shape == shape
    saved = head.with_settings(about)
    expected = {name: (value.shape, value.dtype) for name, value in saved.state_dict().items()}
    if about != saved.settings() or expected != {name: (value.shape, value.dtype) for name, value in tensors.items()}:
        raise ModelError(f"the label head in {folder} fits another base; take the base of the run that wrote it")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise NonFiniteError(f"the label head in {folder} holds NaN or infinity; not loaded")
    saved.load_state_dict(tensors)
    saved.weigh(float(saved.share))
    adapter.attach_head(saved.labels, saved)


def merge(adapter: Adapter) -> None:
    """Add an adapter to its whole base, in place; merging into 4 bits would change logits by a fifth (ModelError)."""
    if any(getattr(adapter.base.model, name, False) for name in ("is_loaded_in_4bit", "is_loaded_in_8bit")):
        raise ModelError("an adapter is merged into a whole base only; load it with quantization=none")
    adapter.module.merge_adapter()


def save_merged(adapter: Adapter, folder: Path, dtype: str) -> None:
    """Write a merged base in float32, or rounded once to bfloat16, with processor and label head; uses the adapter up.

    Weights are rounded up or down with probabilities that keep their mean. Those of a base are multiples of
    bfloat16's steps already, and rounding to the nearest would drop every change below half a step.
    """
    head, merged, seeded = adapter.head, cast(Any, adapter.module.unload()), torch.Generator().manual_seed(0)
    for weight in merged.parameters() if dtype == "bfloat16" else ():
        up = torch.randint(1 << 16, weight.shape, generator=seeded, dtype=torch.int32)
        weight.data = (weight.data.view(torch.int32) + up & -65536).view(torch.float32)
    with quiet(), saving_to(folder):
        merged.to(getattr(torch, dtype)).save_pretrained(folder)
        adapter.base.processor.save_pretrained(folder)
    if head is not None:
        head.save(folder)


def _check_settings(adapter: Adapter, folder: Path) -> None:
    path = folder / "adapter_config.json"
    saved = _json(path)
    held = adapter.module.peft_config["default"].to_dict()
    for name in _SETTINGS:
        mine = getattr(held[name], "value", held[name])
        theirs = saved.get(name)
        if theirs != mine:
            raise ModelError(
                f"{path} says {name} {theirs!r}, but the settings make it {mine!r}; take the "
                "settings of the run that wrote the adapter"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: Any = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        check_digest(found)
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} holds no adapter (no {path.name}); finish the run, with --resume where it was interrupted"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; restore it from a copy") from error
    return {name: value for name, value in found.items() if name != "sha256"}
