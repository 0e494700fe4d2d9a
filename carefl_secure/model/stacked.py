"""A fresh adapter on top of frozen ones, all saved as one."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import torch

from carefl_secure.errors import ModelError
from carefl_secure.model.lora import Adapter


class StackedAdapter(Adapter):
    r"""A fresh LoRA on a base that keeps its present adapters, which are frozen.

    With :math:`B_1 A_1` frozen and :math:`B_2 A_2` in training, both of rank r and scale
    :math:`\alpha`, a layer computes

    .. math:: W x + \frac{\alpha}{r} (B_1 A_1 + B_2 A_2) x
              = W x + \frac{2 \alpha}{2 r} [B_1\; B_2] \begin{bmatrix} A_1 \\ A_2 \end{bmatrix} x

    and the right-hand side is what `save` writes: one ordinary adapter of rank 2 r and scale 2
    alpha, the same function up to rounding. ``merge_and_unload`` would add the product to the base
    and quantise it anew, which changed the logits of a 4-bit base by 21 % when it was measured.
    A label head is not stacked: the one head trains on.

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
            if mine and ("text_model" not in name or parameter.dtype != torch.float32):
                raise ModelError(f"adapter weight {name} is not a float32 weight of the text model")
            trains = mine and not (self.train == "B" and "lora_A" in name)
            parameter.requires_grad_(trains)
            if trains:
                self.parameters.append((name, parameter))
        self.parameters += self._head_parameters()
