"""One private optimiser step side by side with a plain one and with Opacus: CPU time and memory.

    python benchmarks/dpsgd.py [--quick] [--json]

The step is forward, backward, clipping per record, noise, and Adam, on the LoRA weights of (1) the
embedded model with the settings of the default run, and (2) a text model with the widths of
SmolVLM2-256M (576 wide, 9 heads, random weights, 4 of its 30 layers, so that it fits a small
machine), once more with gradient checkpointing. Ours: the native engine, with Skellam noise from
the AES key stream. Opacus: its per-sample hooks, and ghost clipping, with its own optimisers. All
play in turns within one process; the figure is the least CPU time of a step. Memory is the growth
of the resident set within a step, each in a process of its own (Linux with glibc).

The whole of SmolVLM2-256M, 500M or 2.2B with an image and 26 labels, on a CPU or a GPU: ``gpu.py``.

Bars: at most 1.10 times the plain step (1.15 with checkpointing), at most 1.15 times its memory
plus the gradients of the records, and never slower than the hooks of Opacus.

About three minutes on two cores; ``--quick`` takes fewer turns and smaller batches.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _bench import Bar, Report, arguments, cpu, finish, say

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from carefl_secure.data.records import LabelSpace
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import TARGETS, Adapter
from carefl_secure.noise import KeyStream, SkellamSampler, SystemKeySource
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum

Indices = npt.NDArray[np.int64]
MEGABYTE = 1 << 20
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
NOISE, SCALE = 0.6, 1000.0  # noise multiplier; integers per clipping norm
PLAIN, OURS, HOOKS, GHOST = "plain", "ours", "opacus hooks", "opacus ghost"


@dataclass
class Model:
    """A module, what trains in it, one loss per record, and the batch of a step."""

    name: str
    module: nn.Module
    parameters: list[tuple[str, nn.Parameter]]
    losses: Callable[[Indices], Tensor]
    batch: int
    limit: float = 1.10
    peers: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trained weights without their names."""
        return [parameter for _, parameter in self.parameters]

    @property
    def gradients(self) -> float:
        """Megabytes of the gradients of all records of a batch."""
        return 4 * self.batch * sum(p.numel() for p in self.weights) / MEGABYTE


def embedded(batch: int) -> Model:
    """Return the embedded model as the default run trains it."""
    base = load_base(quantization="nf4")
    adapter = Adapter(base, rank=8, alpha=16, targets=TARGETS, train="B", seed=0)
    space = LabelSpace("emotic", tuple(f"label {i}" for i in range(26)), True)
    generator = torch.Generator().manual_seed(0)
    width = base.model.config.text_config.hidden_size
    features = torch.randn(batch, 16, width, generator=generator)
    held = (torch.rand(batch, 26, generator=generator) < 0.1).float().numpy()
    learner = RecordLosses(LabelScorer(adapter, space, QUESTIONS["emotic"]), features, held)
    adapter.module.train()
    return Model("embedded", adapter.module, adapter.active(1), learner.losses, batch)


def llama(batch: int, tokens: int, checkpointing: bool) -> Model:
    """Return four layers of the widths of SmolVLM2-256M's text model, with LoRA on all of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        use_cache=False,
    )
    names = [f"{name}_proj" for name in TARGETS]
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=names)
    module = get_peft_model(LlamaForCausalLM(config), lora)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    if checkpointing:
        module.activation_checkpointing_enable({"use_reentrant": False})
    module.train()
    inputs = torch.randn(batch, tokens, 576)
    answers = torch.randint(0, 49280, (batch, 4))

    def losses(indices: Indices) -> Tensor:
        rows = torch.from_numpy(indices)
        logits = module(inputs_embeds=inputs[rows], logits_to_keep=4).logits
        each = F.cross_entropy(logits.transpose(1, 2), answers[rows], reduction="none")
        return each.mean(1)

    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    name = "256M-shaped" + (", checkpointing" if checkpointing else "")
    limit = 1.15 if checkpointing else 1.10
    return Model(name, module, trained, losses, batch, limit, not checkpointing)


def plain_step(model: Model, adam: torch.optim.Optimizer, everyone: Indices) -> None:
    """Take a step without privacy."""
    adam.zero_grad()
    model.losses(everyone).sum().backward()
    adam.step()


def our_step(model: Model, adam: torch.optim.Optimizer, everyone: Indices, noise: SkellamSampler) -> None:
    """Take a private step as a client and the server together take it, less the secure sum."""
    total = clipped_sum(
        model.module, model.parameters, model.losses, everyone, Clipping(1.0, True, micro_batch=len(everyone))
    ).vector
    total += noise.sample(KeyStream(SystemKeySource().key("noise")), total.size) / SCALE
    mean = torch.from_numpy(total / len(everyone)).float()
    start = 0
    for weight in model.weights:
        weight.grad = mean[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    adam.step()


def hooks_step(model: Model, optimiser: DPOptimizer, everyone: Indices) -> None:
    """Take a private step with the gradients per sample of Opacus."""
    optimiser.zero_grad()
    model.losses(everyone).sum().backward()
    optimiser.step()


def ghost_step(
    model: Model,
    wrapped: GradSampleModuleFastGradientClipping,
    optimiser: DPOptimizerFastGradientClipping,
    everyone: Indices,
) -> None:
    """Take a private step with two backward passes, as Opacus' own loss does it."""
    optimiser.zero_grad()
    wrapped.enable_hooks()
    losses = model.losses(everyone)
    losses.sum().backward(retain_graph=True)
    optimiser.zero_grad()
    factors = wrapped.get_clipping_coef()
    wrapped.disable_hooks()
    (factors * losses).sum().backward()
    optimiser.step()


class Player:
    """Takes steps of one kind; Opacus is put on before each and taken off after it, unmeasured."""

    def __init__(self, model: Model, kind: str) -> None:
        self.model, self.kind = model, kind
        self.everyone = np.arange(model.batch)
        self.adam = torch.optim.Adam(model.weights, lr=1e-4)
        self.noise = SkellamSampler((NOISE * SCALE) ** 2)

    def step(self) -> float:
        """Take one step and return its CPU seconds."""
        gc.collect()
        run, done = self._prepared()
        try:
            return cpu(run)[1]
        finally:
            done()

    def _prepared(self) -> tuple[Callable[[], None], Callable[[], None]]:
        model, everyone = self.model, self.everyone
        for weight in model.weights:
            weight.grad = None
        if self.kind == PLAIN:
            return (lambda: plain_step(model, self.adam, everyone)), lambda: None
        if self.kind == OURS:
            return (lambda: our_step(model, self.adam, everyone, self.noise)), lambda: None
        settings: dict[str, Any] = {
            "noise_multiplier": NOISE,
            "max_grad_norm": 1.0,
            "expected_batch_size": model.batch,
            "loss_reduction": "sum",
        }
        if self.kind == HOOKS:
            hooks = GradSampleModule(model.module, loss_reduction="sum", strict=True)
            private = DPOptimizer(self.adam, **settings)
            return (lambda: hooks_step(model, private, everyone)), lambda: self._off(hooks)
        ghost = GradSampleModuleFastGradientClipping(
            model.module, loss_reduction="sum", strict=True, max_grad_norm=1.0
        )
        fast = DPOptimizerFastGradientClipping(self.adam, **settings)
        return (lambda: ghost_step(model, ghost, fast, everyone)), lambda: self._off(ghost)

    def _off(self, wrapped: Any) -> None:
        wrapped.remove_hooks()
        for parameter in self.model.module.parameters():
            for name in ("grad_sample", "_forward_counter", "_norm_sample", "_current_grad_sample"):
                parameter.__dict__.pop(name, None)


def resident(what: str) -> float:
    """Return VmRSS or VmHWM of this process in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the system does not report {what}")


def growth(player: Player) -> float:
    """Return by how much the resident set grows in a step, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back at once
        player.step()  # optimiser state and caches
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
        before = resident("VmRSS")
        player.step()
        os.write(write, f"{resident('VmHWM') - before:.3f}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(text)


def measure(model: Model, turns: int) -> None:
    """Let all kinds of steps take turns and keep their least times."""
    kinds = [PLAIN, OURS, *((HOOKS, GHOST) if model.peers else ())]
    players = {kind: Player(model, kind) for kind in kinds}
    for turn in range(turns + 1):
        for kind, player in players.items():
            seconds = player.step()
            if turn:  # the first one warms up
                model.seconds[kind] = min(seconds, model.seconds.get(kind, seconds))
        say(f"{model.name}: turn {turn} of {turns}")
    for kind, player in players.items():
        model.memory[kind] = growth(player)


def judge(report: Report, model: Model) -> None:
    """Add the rows and bars of one model."""
    plain = model.seconds[PLAIN]
    for kind, seconds in model.seconds.items():
        report.rows.append(
            {
                "model": f"{model.name} (batch {model.batch})",
                "step": kind,
                "CPU ms": 1000 * seconds,
                "of plain": seconds / plain,
                "MB more in a step": model.memory[kind],
            }
        )
    name = model.name
    report.bars.append(Bar(f"{name}: CPU of a plain step", model.seconds[OURS] / plain, model.limit, False))
    if HOOKS in model.seconds:
        ratio = model.seconds[OURS] / model.seconds[HOOKS]
        report.bars.append(Bar(f"{name}: CPU of Opacus hooks", ratio, 1.0, False))
    allowed = 1.15 * model.memory[PLAIN] + model.gradients
    report.bars.append(Bar(f"{name}: MB in a step", model.memory[OURS], allowed, False))


def main() -> int:
    """Run, print, judge."""
    chosen = arguments(__doc__)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    small = chosen.quick
    report = Report("One optimiser step: private against plain, and against Opacus")
    report.notes = [
        "256M-shaped: widths of SmolVLM2-256M's text model, 4 of its 30 layers, random weights.",
        "Opacus does not work with non-reentrant checkpointing, so it has no rows there.",
        "Memory allowed: 1.15 times the plain step's, plus the gradients of the records.",
    ]
    makers = (
        lambda: embedded(32 if small else 64),
        lambda: llama(4 if small else 8, 64 if small else 128, False),
        lambda: llama(4 if small else 8, 64 if small else 128, True),
    )
    for make in makers:
        model = make()
        measure(model, 4 if small else 9)
        judge(report, model)
        del model
        gc.collect()
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
