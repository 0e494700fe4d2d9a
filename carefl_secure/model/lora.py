"""The adapter: LoRA on the text model, alone or on frozen ones, and its passage to and from one float32 vector."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from carefl_secure.errors import ConfigError, ModelError, NonFiniteError
from carefl_secure.model.label_head import LabelHead
from carefl_secure.model.loader import Base
from carefl_secure.model.weights import saving_to, write_weights

_LAYER = r".*text_model\.layers\.({layers})\."
_HEAD, _HEAD_WEIGHT = "label_head.", "label_head.linear.weight"
_HEAD_SHARE = "label_head.share"
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""Short names of the linear layers of a text block that an adapter may sit on."""

VISION_TARGETS = {
    "connector": r".*connector\.modality_projection\.proj",
    "vision": r".*vision_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))",
}
"""Targets on the vision side, with the layers they stand for. With one of them features cannot be made ahead."""


class Adapter:
    r"""LoRA matrices on a frozen base: :math:`W x + (\alpha / r) B A x`.

    A base that has an adapter already, or matrices that do not land on the text model alone in
    float32, raise `ModelError`.

    Parameters
    ----------
    targets : sequence of str
        Some of :data:`TARGETS` and :data:`VISION_TARGETS`.
    train : {"B", "both", "alternate"}
        ``B``: A stays at its seeded value, so sums of B are exact averages of the product
        (FFA-LoRA, arXiv 2403.12313). ``both``: A and B. ``alternate``: B in odd rounds, A in even
        ones; the vector holds both, and the gradient of the half that rests is exactly zero.
    seed : int
        Fixes A. The same seed gives the same A on every client.
    last_layers : int, optional
        Adapt only so many of the last text layers; all by default.
    head : sequence of str, optional
        Labels for which a `LabelHead` is trained as well. What it consists of comes last in the vector.
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
        head: Sequence[str] = (),
    ) -> None:
        if train not in ("B", "both", "alternate"):
            raise ConfigError(f"adapter.train must be B, both or alternate, not {train!r}")
        if getattr(base.model, "peft_config", None):
            raise ModelError("this base wears an adapter already; load the base anew for another")
        self.base = base
        self.train = train
        self.names = ["default"]  # peft's names of the adapters that are saved as one
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
            _check_weight(name, parameter, targets)
            if train == "B" and "lora_A" in name:
                parameter.requires_grad_(False)
            else:
                self.parameters.append((name, parameter))
        if not self.parameters:
            raise ModelError("the adapter has no trainable weights; check adapter.targets")
        if head:
            self.attach_head(head)

    @property
    def head(self) -> LabelHead | None:
        """The label head, or None."""
        return getattr(self.module, "label_head", None)

    def attach_head(
        self,
        labels: Sequence[str],
        head: LabelHead | None = None,
        *,
        noisy: bool = True,
        multi: bool = True,
        reads: str = "image",
    ) -> None:
        """Train a head for ``labels`` as well, a fresh one by default, in place of one that is there."""
        config = self.base.model.config.text_config
        size = int(self.base.processor.image_seq_len), int(config.hidden_size)
        head = head or LabelHead(labels, *size, noisy=noisy, multi=multi, reads=reads)
        # Inside the module, where the clipping engines look for layers.
        self.module.label_head = head.to(self.base.device)
        self.parameters = [(name, p) for name, p in self.parameters if not name.startswith(_HEAD)]
        self.parameters += self._head_parameters()

    def _head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the head's weights, which train, and the rest of it, which travels with them."""
        return [] if self.head is None else [(_HEAD + name, p) for name, p in self.head.named_parameters()]

    @property
    def trains_vision(self) -> bool:
        """Whether some of the adapter sits on the vision side."""
        return any(".connector." in name or ".vision_model." in name for name, _ in self.parameters)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the module compute as the frozen base does."""
        trained = [(parameter, parameter.requires_grad) for parameter in self.module.parameters()]
        with self.module.disable_adapter():
            yield
        for parameter, before in trained:
            parameter.requires_grad_(before)

    @property
    def dimension(self) -> int:
        """Number of values that all parties share and rounds sum."""
        return sum(p.numel() for _, p in self.parameters)

    def active(self, number: int) -> list[tuple[str, nn.Parameter]]:
        """Return what trains in round ``number``, the only part with gradients; a head that is alone trains alone."""
        chosen, alone = [], self.head is not None and self.head.alone
        for name, parameter in self.parameters:
            trains = self.train != "alternate" or ("lora_B" in name) == (number % 2 == 1)
            if alone or name.startswith(_HEAD):
                trains = name == _HEAD_WEIGHT and (alone or trains)
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
            return np.asarray(torch.cat([p.detach().flatten() for _, p in self.parameters]).cpu().numpy())

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
        if self.head is not None:
            self.head.weigh(float(vector[self.head_entries(_HEAD_SHARE)][0]))

    def untuned(self) -> npt.NDArray[np.float32]:
        """Return the vector with the base's own scores at full weight, whatever share of them the label head takes."""
        vector = self.vector()
        vector[self.head_entries(_HEAD_SHARE)] = 1.0
        return vector

    def head_entries(self, start: str = _HEAD) -> npt.NDArray[np.bool_]:
        """Return which entries of the vector are the label head's, or one weight's of it, shape [dimension]."""
        return np.concatenate([np.full(p.numel(), name.startswith(start)) for name, p in self.parameters])

    def save(self, folder: Path) -> None:
        """Write all adapters as one, which ``PeftModel.from_pretrained`` loads without this package."""
        parts = [get_peft_model_state_dict(self.module, adapter_name=name) for name in self.names]
        whole = {
            # B is [out, r] and A is [r, in]: either way the ranks are put side by side.
            name: torch.cat([part[name] for part in parts], 1 if "lora_B" in name else 0).detach().contiguous()
            for name in parts[0]
        }
        with saving_to(folder):
            self.saved_config().save_pretrained(str(folder))
        if self.head is not None:
            self.head.save(folder)
        write_weights(folder / "adapter_model.safetensors", whole)  # last: it is what tells a finished run

    def saved_config(self) -> Any:
        """Return peft's configuration of what `save` writes."""
        config: Any = copy.deepcopy(self.module.peft_config["default"])
        config.r *= len(self.names)
        config.lora_alpha *= len(self.names)
        config.inference_mode = True
        source = self.base.source  # peft would name the folder that the base was loaded from
        config.base_model_name_or_path = source if source != "embedded" else "carefl-secure/embedded"
        return config


def _check_weight(name: str, parameter: nn.Parameter, targets: tuple[str, ...]) -> None:
    sides = ["text_model", *(side for side in ("connector", "vision_model") if side.removesuffix("_model") in targets)]
    if not any(side in name for side in sides) or parameter.dtype != torch.float32:
        raise ModelError(f"adapter weight {name} is not a float32 weight of the layers in adapter.targets")


def _pattern(base: Base, targets: tuple[str, ...], last_layers: int | None) -> str:
    known = (*TARGETS, *VISION_TARGETS)
    unknown = sorted(set(targets) - set(known))
    if unknown or not targets:
        raise ConfigError(f"adapter.targets must be some of {', '.join(known)}; got {', '.join(unknown) or '-'}")
    count = int(base.model.config.text_config.num_hidden_layers)
    if last_layers is not None and not 1 <= last_layers <= count:
        raise ConfigError(f"adapter.last_layers must lie between 1 and {count}, not {last_layers}")
    first = 0 if last_layers is None else count - last_layers
    layers = "|".join(str(i) for i in range(first, count))
    blocks = (("self_attn", TARGETS[:4]), ("mlp", TARGETS[4:]))
    chosen = ((block, "|".join(t for t in names if t in targets)) for block, names in blocks)
    parts = [rf"{block}\.({some})_proj" for block, some in chosen if some]
    text = [_LAYER.format(layers=layers) + "(" + "|".join(parts) + ")"] if parts else []
    return "|".join([*text, *(pattern for name, pattern in VISION_TARGETS.items() if name in targets)])


class StackedAdapter(Adapter):
    r"""A fresh LoRA on a base that keeps its present adapters, which are frozen.

    With :math:`B_1 A_1` frozen and :math:`B_2 A_2` in training, both of rank r and scale
    :math:`\alpha`, a layer computes

    .. math:: W x + \frac{\alpha}{r} (B_1 A_1 + B_2 A_2) x
              = W x + \frac{2 \alpha}{2 r} [B_1\; B_2] \begin{bmatrix} A_1 \\ A_2 \end{bmatrix} x

    and the right-hand side is what `save` writes: one ordinary adapter of rank 2 r and scale 2 alpha, the same
    function up to rounding. ``merge_and_unload`` would add the product to the base and quantise it anew, which changed
    the logits of a 4-bit base by 21 % when it was measured. A label head is not stacked: the one head trains on.

    ``first`` may be a stack itself, is frozen as it is now, and must not be used any more. ``seed``
    fixes the fresh A and must differ from the first adapter's, whose span is used already.
    """

    def __init__(self, first: Adapter, seed: int) -> None:
        self.base, self.train, self.module = first.base, first.train, first.module
        self.lock = threading.Lock()
        self.names = [*first.names, f"stage{len(first.names) + 1}"]
        fresh = self.names[-1]
        config = copy.deepcopy(self.module.peft_config["default"])
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            self.module.add_adapter(fresh, config)
        inner: Any = self.module.base_model
        inner.set_adapter(self.names)
        self.parameters = []
        for name, parameter in self.module.named_parameters():
            mine = f".{fresh}." in name and "lora_" in name
            if mine:
                _check_weight(name, parameter, tuple(VISION_TARGETS) if self.trains_vision else ())
            trains = mine and not (self.train == "B" and "lora_A" in name)
            parameter.requires_grad_(trains)
            if trains:
                self.parameters.append((name, parameter))
        self.parameters += self._head_parameters()
