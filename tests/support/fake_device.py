"""The model on a device that is not there: shapes and devices alone, no values. Run as a script.

torch's FakeTensorMode refuses to mix devices as a GPU does. Autograd needs a device that is
registered, so it is torch's placeholder backend under a name of ours; registering cannot be
undone, so each trial has a process of its own. Backward runs in a thread of autograd's, as on CUDA.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from carefl_secure.data.records import EMOTIC
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.vision.encode import encode_images
from carefl_secure.privacy.clipping.clipped_sum import Clipping, sums_on_device


class Generated(Exception):
    """Generation reached the end of its first step."""


def fake_scorer(mode: FakeTensorMode, device: torch.device) -> LabelScorer:
    """Return a scorer on the embedded model, moved to the device."""
    adapter = Adapter(load_base(quantization="none"), rank=2, alpha=4, head=EMOTIC.labels)
    adapter.base = dataclasses.replace(adapter.base, device=device)

    def moved(one: torch.Tensor) -> torch.Tensor:
        return mode.from_tensor(one.detach()).to(device)

    with mode:
        for module in adapter.module.modules():
            for name, held in module._parameters.items():
                if held is not None:
                    module._parameters[name] = torch.nn.Parameter(moved(held), requires_grad=held.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = moved(buffer)
    named = dict(adapter.module.named_parameters())
    adapter.parameters = [(name, named[name]) for name, _ in adapter.parameters]
    with mode:
        return LabelScorer(adapter, EMOTIC, "Which?")


def step(scorer: LabelScorer, features: torch.Tensor, device: torch.device) -> None:
    """Clip and add three records and one that only fills up, in two micro-batches."""
    adapter = scorer.adapter
    adapter.module.train()
    held = RecordLosses(scorer, features, np.zeros((3, 26), np.float32))
    active = adapter.active(1)
    sums, skipped = sums_on_device(
        adapter.module,
        active,
        held.losses,
        np.arange(3),
        Clipping(1.0, True, micro_batch=2),
        groups=None,
        parallel_batches=map,
        rows=4,
    )
    assert {one.device for one in (*sums, skipped)} == {device}
    assert sum(one.numel() for one in sums) == adapter.trainable_entries(1).sum() < adapter.dimension
    assert any(name.startswith("label_head") for name, _ in active)
    assert torch.cat([p.detach().flatten() for _, p in adapter.parameters]).cpu().device.type == "cpu"


def checkpointed(scorer: LabelScorer, features: torch.Tensor, device: torch.device) -> None:
    """Take the step with recomputed activations: the layers run again in autograd's thread."""
    scorer.adapter.module.activation_checkpointing_enable({"use_reentrant": False})
    step(scorer, features, device)


def score(scorer: LabelScorer, features: torch.Tensor, device: torch.device) -> None:
    """Score the labels. Captions of different length only change the mask, which is made on the CPU."""
    assert scorer(features).device == device


def encode(scorer: LabelScorer, features: torch.Tensor, device: torch.device) -> None:
    """Encode an image on the device; its features come back to the CPU."""
    vision: Any = scorer.adapter.base.model.model
    original = vision.get_image_features

    def seen(pixels: torch.Tensor, mask: Any, **more: Any) -> Any:
        assert pixels.device == device
        # The mask of padded patches indexes by value; a whole image has none.
        return original(pixels, None, **more)

    vision.get_image_features = seen
    assert encode_images(scorer.adapter.base, [Image.new("RGB", (64, 64), "red")]).device.type == "cpu"


def generate(scorer: LabelScorer, features: torch.Tensor, device: torch.device) -> None:
    """Take one step of greedy decoding; the loop around it is transformers' and reads values."""
    model: Any = scorer.adapter.module.get_base_model()

    def first(input_ids: torch.Tensor, attention_mask: torch.Tensor, mm_encoder_outputs: Any, **_: Any) -> None:
        out = model(input_ids=input_ids, attention_mask=attention_mask, mm_encoder_outputs=mm_encoder_outputs)
        after = torch.cat([input_ids, out.logits[:, -1:].argmax(-1)], 1)
        assert after.device == device
        raise Generated

    model.generate = first
    try:
        TextScorer(scorer).all(features)
    except Generated:
        return
    raise AssertionError("nothing was generated")


TRIALS = {"step": step, "checkpointed step": checkpointed, "score": score, "encode": encode, "generate": generate}


def main(trial: str) -> None:
    """Run one trial."""
    _setup_privateuseone_for_python_backend("fakegpu")  # type: ignore[no-untyped-call]
    # What compares values cannot be held: there are none.
    torch._check_tensor_all_with = lambda *_: None  # type: ignore[attr-defined]
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    device = torch.device("fakegpu:0")
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    scorer = fake_scorer(mode, device)
    with mode:
        TRIALS[trial](scorer, torch.zeros(3, 16, 128), device)


if __name__ == "__main__":
    main(sys.argv[1])
    print("same device throughout")
