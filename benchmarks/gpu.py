"""One private step of a whole SmolVLM2 shape on a GPU or a CPU: time, tokens a second, and memory.

    python benchmarks/gpu.py [--device auto] [--shape 256M 500M 2.2B] [--batch 8] [--turns 5]
                             [--quantization nf4] [--checkpointing] [--folder DIR] [--quick] [--json]

The exact layers of SmolVLM2 with random weights (``_shapes.py``), the base in 4 bits (nf4) and bfloat16, one image of
one tile, the question and 26 labels of EMOTIC, LoRA of rank 8 on the query and value projections: what
``carefl-secure train`` does by default with such a base. Four steps take turns in one process:

* plain: the same losses from the same cached features, without clipping and noise, with Adam;
* ours: clipping per record and Skellam noise from the AES key stream, then Adam;
* opacus hooks: the same losses with Opacus' gradients per sample and its optimiser;
* peft labels=: what a practitioner runs: transformers and peft, ``labels=`` with one answer an image, and the image
  through the vision tower in every step. It trains on one answer in place of 26, and mixes records in its loss.

On CUDA the time is that of the wall between two synchronisations and the memory is torch's highest mark. On a CPU it
is CPU time, and the growth of the resident set in a process of its own. The figure is the least of all turns. For each
shape there are two bars: ours takes at most 1.10 times the plain step, and no longer than the hooks of Opacus.

On two CPU cores 256M takes about ten minutes, and 2.2B wants ``--batch 1 --turns 1``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _bench import Bar, Report, finish, say
from _shapes import SHAPES, write_base
from dpsgd import HOOKS, OURS, PLAIN, Model, Player, growth, resident
from PIL import Image
from torch import nn

from carefl_secure.data.records import EMOTIC
from carefl_secure.hub import find_device
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import Base, load_base
from carefl_secure.model.lora import Adapter

LABELS = "peft labels="
"""The step of a practitioner: transformers and peft alone."""


class Turn(Player):
    """Takes steps of one kind and measures them where they run."""

    def __init__(self, model: Model, kind: str, base: Base, practitioner: Callable[[], None]) -> None:
        super().__init__(model, kind)
        self.base, self.practitioner = base, practitioner

    def step(self) -> float:
        """Take one step; return CPU seconds, or those of the wall on a GPU."""
        gc.collect()
        run, done = self._prepared()
        cuda = self.base.device.type == "cuda"
        try:
            if not cuda:
                start = time.process_time()
                run()
                return time.process_time() - start
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            return time.perf_counter() - start
        finally:
            done()

    def _prepared(self) -> tuple[Callable[[], None], Callable[[], None]]:
        if self.kind != LABELS:
            return super()._prepared()

        def run() -> None:
            self.adam.zero_grad()
            self.practitioner()
            self.adam.step()

        return run, lambda: None

    def memory(self) -> float:
        """Return the megabytes of a step: torch's highest mark on a GPU, the growth of the resident set on a CPU."""
        if self.base.device.type != "cuda":
            return growth(self)
        self.step()
        return torch.cuda.max_memory_allocated() / (1 << 20)


def build(name: str, folder: Path, chosen: argparse.Namespace) -> tuple[Model, Base, Callable[[], None], int]:
    """Return the model with its cached features, its base, a practitioner's pass, and the tokens of a step."""
    batch = chosen.batch
    base = load_base(
        str(write_base(name, folder / name)),
        quantization=chosen.quantization,
        compute_dtype="bfloat16",
        device=chosen.device,
    )
    adapter = Adapter(base, rank=8, alpha=16, targets=("q", "v"), train="B", seed=0, head=EMOTIC.labels)
    generator = torch.Generator().manual_seed(0)
    text = base.model.config.text_config
    tokens = int(base.processor.image_seq_len)
    features = torch.randn(batch, tokens, int(text.hidden_size), generator=generator).to(base.dtype)
    held = (torch.rand(batch, len(EMOTIC.labels), generator=generator) < 0.1).float().numpy()
    scorer = LabelScorer(adapter, EMOTIC, QUESTIONS["emotic"])
    learner = RecordLosses(scorer, features, held)
    module: nn.Module = adapter.module
    module.train()
    if chosen.checkpointing:
        adapter.module.activation_checkpointing_enable({"use_reentrant": False})
    picture = Image.effect_noise((640, 480), 64).convert("RGB")
    pixels = base.processor.image_processor([[picture]] * batch, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(base.device, base.dtype)
    ids, attention = base.prompter.batch([QUESTIONS["emotic"]] * batch)
    answer = torch.tensor(base.prompter.answers(EMOTIC.labels[:1], reference=False)).expand(batch, -1)
    whole = torch.cat([ids, answer], 1).to(base.device)
    labels = torch.cat([torch.full_like(ids, -100), answer], 1).to(base.device)
    seen = torch.cat([attention, torch.ones_like(answer)], 1).to(base.device)

    def practitioner() -> None:
        adapter.module(input_ids=whole, attention_mask=seen, pixel_values=pixels, labels=labels).loss.backward()

    nodes = len(scorer.__dict__["_tree"].parents)
    model = Model(name, module, adapter.active(1), learner.losses, batch, peers=not chosen.checkpointing)
    return model, base, practitioner, batch * (ids.shape[1] + nodes)


def measure(name: str, folder: Path, chosen: argparse.Namespace, report: Report) -> None:
    """Let all kinds of steps of one shape take turns, and add their rows and bars."""
    model, base, practitioner, tokens = build(name, folder, chosen)
    loaded = resident("VmRSS")
    kinds = [PLAIN, OURS, *([HOOKS] if model.peers else []), LABELS]
    players = {kind: Turn(model, kind, base, practitioner) for kind in kinds}
    seconds: dict[str, float] = {}
    for turn in range(chosen.turns + 1):
        for kind, player in players.items():
            took = player.step()
            if turn or chosen.turns == 1:  # the first one warms up
                seconds[kind] = min(took, seconds.get(kind, took))
            say(f"{name}: {kind}, turn {turn} of {chosen.turns}: {took:.3g} s")
    for kind, player in players.items():
        report.rows.append(
            {
                "shape": name,
                "device": str(base.device),
                "batch": chosen.batch,
                "step": kind,
                "ms": 1000 * seconds[kind],
                "of plain": seconds[kind] / seconds[PLAIN],
                "tokens/s": float("nan") if kind == LABELS else tokens / seconds[kind],
                "MB in a step": player.memory(),
            }
        )
    report.notes.append(f"{name}: {loaded:,.0f} MB resident once loaded, {resident('VmHWM'):,.0f} MB at the most.")
    report.bars.append(Bar(f"{name}: time of a plain step", seconds[OURS] / seconds[PLAIN], 1.10, False))
    if HOOKS in seconds:
        report.bars.append(Bar(f"{name}: time of Opacus hooks", seconds[OURS] / seconds[HOOKS], 1.0, False))


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=None, help="default: 256M; all on CUDA")
    parser.add_argument("--batch", type=int, default=8, help="records of a step, all in the model at once")
    parser.add_argument("--turns", type=int, default=5, help="steps of each kind; with more than 1, one more warms up")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4", help="of the base")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--folder", type=Path, default=None, help="keeps the checkpoints that are made")
    parser.add_argument("--quick", action="store_true", help="256M, two records, two turns")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.shape, chosen.batch, chosen.turns = ["256M"], 2, 2
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    place = find_device(chosen.device)
    report = Report(f"One private step of a whole SmolVLM2 shape, base {chosen.quantization} and bfloat16, on {place}")
    with tempfile.TemporaryDirectory() as made:
        for name in chosen.shape or (list(SHAPES) if place.type == "cuda" else ["256M"]):
            measure(name, chosen.folder or Path(made), chosen, report)
            gc.collect()
    return finish(report, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
