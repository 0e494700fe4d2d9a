"""A fresh adapter on top of frozen ones, all saved as one."""

from __future__ import annotations

import copy
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

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

    ``first`` may be a stack itself, is frozen as it is now, and must not be used any more. ``seed``
    fixes the fresh A and must differ from the first adapter's, whose span is used already.
    """

    def __init__(self, first: Adapter, seed: int) -> None:
        self.base, self.train, self.module = first.base, first.train, first.module
        self.lock = threading.Lock()
        self.names: list[str] = [*adapters_of(first), f"stage{len(adapters_of(first)) + 1}"]
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

    def save(self, folder: Path) -> None:
        """Write all adapters as one, which ``PeftModel.from_pretrained`` loads."""
        parts = [get_peft_model_state_dict(self.module, adapter_name=name) for name in self.names]
        whole = {
            # B is [out, r] and A is [r, in]: either way the ranks are put side by side.
            name: torch.cat([part[name] for part in parts], 1 if "lora_B" in name else 0).detach().contiguous()
            for name in parts[0]
        }
        config: Any = copy.deepcopy(self.module.peft_config["default"])
        config.r *= len(parts)
        config.lora_alpha *= len(parts)
        config.inference_mode = True
        self._describe(config)
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self._write_card(folder)


def adapters_of(adapter: Adapter) -> list[str]:
    """Return peft's names of the adapters that a base holds under an adapter of ours."""
    return adapter.names if isinstance(adapter, StackedAdapter) else ["default"]
