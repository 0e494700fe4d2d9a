"""The adapter: LoRA on the text model, and its passage to and from one flat float32 vector."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from carefl_secure.errors import ConfigError, ModelError, NonFiniteError
from carefl_secure.model.loader import Base

_LAYER = r".*text_model\.layers\.({layers})\."
_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: image-text-to-text
---

# LoRA adapter tuned with carefl-secure

Load it on its base model with `PeftModel.from_pretrained`.
"""
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""Short names of the linear layers of a text block that an adapter may sit on."""


class Adapter:
    r"""LoRA matrices on a frozen base: :math:`W x + (\alpha / r) B A x`.

    A base that has an adapter already, or matrices that do not land on the text model alone in
    float32, raise `ModelError`.

    Parameters
    ----------
    targets : sequence of str
        Some of :data:`TARGETS`.
    train : {"B", "both", "alternate"}
        ``B``: A stays at its seeded value, so sums of B are exact averages of the product
        (FFA-LoRA, arXiv 2403.12313). ``both``: A and B. ``alternate``: B in odd rounds, A in even
        ones; the vector holds both, and the gradient of the half that rests is exactly zero.
    seed : int
        Fixes A. The same seed gives the same A on every client.
    last_layers : int, optional
        Adapt only so many of the last text layers; all by default.
    """

    def __init__(
        self,
        base: Base,
        *,
        rank: int,
        alpha: int,
        targets: tuple[str, ...] = TARGETS,
        train: str = "B",
        seed: int = 0,
        last_layers: int | None = None,
    ) -> None:
        if train not in ("B", "both", "alternate"):
            raise ConfigError(f"adapter.train must be B, both or alternate, not {train!r}")
        if getattr(base.model, "peft_config", None):
            raise ModelError("this base wears an adapter already; load the base anew for another")
        self.base = base
        self.train = train
        self.lock = threading.Lock()  # clients of one process take turns with the one module
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=_pattern(base, targets, last_layers),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            self.module: PeftModel = get_peft_model(base.model, config)
        self.parameters: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if "text_model" not in name or parameter.dtype != torch.float32:
                raise ModelError(f"adapter weight {name} is not a float32 weight of the text model")
            if train == "B" and "lora_A" in name:
                parameter.requires_grad_(False)
            else:
                self.parameters.append((name, parameter))
        if not self.parameters:
            raise ModelError("the adapter has no trainable weights; check adapter.targets")

    @property
    def dimension(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for _, p in self.parameters)

    def active(self, number: int) -> list[tuple[str, nn.Parameter]]:
        """Return what trains in round ``number``, and let only that take gradients."""
        chosen = []
        for name, parameter in self.parameters:
            trains = self.train != "alternate" or ("lora_B" in name) == (number % 2 == 1)
            parameter.requires_grad_(trains)
            if trains:
                chosen.append((name, parameter))
        return chosen

    def trainable_entries(self, number: int) -> npt.NDArray[np.bool_]:
        """Return which entries of the vector train in round ``number``, shape [dimension]."""
        names = {name for name, _ in self.active(number)}
        return np.concatenate([np.full(p.numel(), name in names) for name, p in self.parameters])

    def vector(self) -> npt.NDArray[np.float32]:
        """Return the trainable values, flattened in the order of :attr:`parameters`."""
        with torch.no_grad():
            return np.asarray(torch.cat([p.detach().flatten() for _, p in self.parameters]).numpy())

    def load(self, vector: npt.NDArray[np.float32]) -> None:
        """Set the trainable values from a vector of shape [dimension], all of them finite."""
        if vector.shape != (self.dimension,):
            raise ModelError(
                f"an adapter vector of shape {vector.shape} does not fit this adapter of "
                f"{self.dimension} values; all parties need the same adapter settings"
            )
        if not np.isfinite(vector).all():
            raise NonFiniteError("the adapter vector holds NaN or infinity and was not loaded")
        values = torch.from_numpy(np.array(vector, np.float32))
        offset = 0
        with torch.no_grad():
            for _, parameter in self.parameters:
                count = parameter.numel()
                parameter.copy_(values[offset : offset + count].view_as(parameter))
                offset += count

    def save(self, folder: Path) -> None:
        """Write a PEFT folder that ``PeftModel.from_pretrained`` loads without this package."""
        self._describe(self.module.peft_config["default"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.module.save_pretrained(str(folder))
        self._write_card(folder)

    @property
    def _base_name(self) -> str:
        return self.base.source if self.base.source != "embedded" else "carefl-secure/embedded"

    def _describe(self, config: PeftConfig) -> None:
        """Name the base in a config that will be written."""
        config.base_model_name_or_path = self._base_name

    def _write_card(self, folder: Path) -> None:
        # peft's own card names the folder the base was loaded from, on this machine.
        (folder / "README.md").write_text(_CARD.format(base=self._base_name))


def _pattern(base: Base, targets: tuple[str, ...], last_layers: int | None) -> str:
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ConfigError(f"adapter.targets must be some of {', '.join(TARGETS)}; got {', '.join(unknown) or '-'}")
    count = int(base.model.config.text_config.num_hidden_layers)
    if last_layers is not None and not 1 <= last_layers <= count:
        raise ConfigError(f"adapter.last_layers must lie between 1 and {count}, not {last_layers}")
    first = 0 if last_layers is None else count - last_layers
    layers = "|".join(str(i) for i in range(first, count))
    attention = "|".join(t for t in ("q", "k", "v", "o") if t in targets)
    mlp = "|".join(t for t in ("gate", "up", "down") if t in targets)
    parts = []
    if attention:
        parts.append(rf"self_attn\.({attention})_proj")
    if mlp:
        parts.append(rf"mlp\.({mlp})_proj")
    return _LAYER.format(layers=layers) + "(" + "|".join(parts) + ")"
