"""Weights in one safetensors file: written whole or not at all, with a digest in its header that reading checks.

Equal weights give equal files: safetensors writes the entries of ``__metadata__`` in an order of its own each time, so
the header is written anew with sorted names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from carefl_secure.errors import ModelError, RunError
from carefl_secure.run_folder import write_atomically
from carefl_secure.strict_json import canonical_json, load_json

_DIGEST = "sha256"


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a file in one step; RunError where the file system refuses."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    raw = save(whole, {"format": "pt", _DIGEST: _digest(whole)})
    end = 8 + int.from_bytes(raw[:8], "little")
    header = canonical_json(load_json(raw[8:end]))
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    write_atomically(path, len(header).to_bytes(8, "little") + header + raw[end:], private=True)


@contextmanager
def saving_to(folder: Path) -> Iterator[None]:
    """Make a folder for what transformers and PEFT write there; RunError where the file system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {folder}: {error}; free some space or check the permissions") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; ModelError where it is missing, cut off, or not what `write_weights` wrote.

    A file without a digest, as PEFT writes it, is taken as it is.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the adapter weights {path} cannot be read: {error}; restore them from a copy") from error
    if about.get(_DIGEST, found := _digest(tensors)) != found:
        raise ModelError(f"the adapter weights {path} were changed after they were written; restore them from a copy")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
