"""Makes the embedded weights: all weights of the small SmolVLM, trained on the public split only.

Vision tower and connector are trained first, under a linear head that names the factors of a scene
and is then dropped. Then the whole model learns every label word and factor as an answer to a
question, sometimes with a sentence of context. No private or test record is drawn here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Idefics3Processor, SmolVLMForConditionalGeneration

from carefl_secure.captions.prompts import describe
from carefl_secure.data.records import BASIC, COMPOUND, EMOTIC, targets
from carefl_secure.data.synthetic.corpus import VERSION, SyntheticCorpus, synthetic_corpus
from carefl_secure.data.synthetic.scene import GROUPS
from carefl_secure.errors import ConfigError
from carefl_secure.model.embedded import QUESTIONS, build_model, build_processor
from carefl_secure.model.label_tree import TokenTree, answer_log_likelihoods
from carefl_secure.model.prompts import Prompter
from carefl_secure.model.weights import saving_to
from carefl_secure.progress import Reporter, tracked
from carefl_secure.run_folder import require_writable, write_atomically

_RECORDS = 32_000
_BATCH = 64
_SEE, _SPEAK = 2_500, 2_000  # optimizer steps of the two stages
_ASKED = 3  # questions besides the EMOTIC one in each step
_CONTEXT = 4  # every so many steps the question comes with a sentence of context
_KEEP = 500  # steps between two savings, so that a stop loses little
_ORIGIN = "origin.json"

Rows = npt.NDArray[np.int64]


def pretrain(output: Path, *, seed: int, steps: int | None, reporter: Reporter) -> Path:
    """Train the embedded model from random weights and save it; return the folder.

    ``output`` receives weights in float16, tokenizer, processor and ``origin.json``, also during training, so that an
    interrupted training leaves a usable model. ``seed`` fixes weights, data and order; ``steps`` are optimizer steps
    of each stage, by default about twenty minutes on two cores.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"pretraining needs at least one step, not {steps}")
    require_writable(output)
    corpus = synthetic_corpus("public", _RECORDS, seed=seed, reporter=reporter)
    processor = build_processor()
    model = build_model(processor, seed)
    lessons = _Lessons(Prompter(processor), corpus, np.random.default_rng(seed))

    def keep(stage: str) -> Callable[[int], None]:
        def save(done: int) -> None:
            _save(model, processor, output, {"seed": seed, "stage": stage, "steps": done})

        return save

    head = nn.Linear(16 * 128, sum(len(values) for values in GROUPS.values()))
    seeing = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    model.train()
    _train(
        "learning to see",
        [*seeing, *head.parameters()],
        lambda step, chosen: lessons.seen(head(_features(model, corpus, chosen).flatten(1)), chosen),
        steps or _SEE,
        2e-3,
        reporter,
        keep("see"),
        seed,
    )
    _train(
        "learning to speak",
        list(model.parameters()),
        lambda step, chosen: lessons.spoken(
            model, _features(model, corpus, chosen), chosen, step % _CONTEXT == _CONTEXT - 1
        ),
        steps or _SPEAK,
        1e-3,
        reporter,
        keep("speak"),
        seed + 1,
    )
    return output


def _train(
    task: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[int, Rows], Tensor],
    steps: int,
    rate: float,
    reporter: Reporter,
    keep: Callable[[int], None],
    seed: int,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 1.0) * (0.5 * (1 + math.cos(math.pi * s / steps)) + 1e-3)
    )
    rng = np.random.default_rng(seed)
    running = 0.0
    for step in tracked(range(steps), reporter, task):
        chosen = rng.choice(_RECORDS, _BATCH, replace=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(step, chosen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        value = float(loss.detach())
        running = 0.98 * running + 0.02 * value if step else value
        if step % 250 == 249:
            reporter.note(f"{task}, step {step + 1}: loss {running:.3f}")
        if step % _KEEP == _KEEP - 1 or step == steps - 1:
            keep(step + 1)


def _features(model: SmolVLMForConditionalGeneration, corpus: SyntheticCorpus, chosen: Rows) -> Tensor:
    pixels = torch.from_numpy(corpus.pixels[chosen]).permute(0, 3, 1, 2).float()
    scaled = (pixels / 255 - 0.5) / 0.5  # what the processor does to a picture of this very size
    output = model.model.get_image_features(scaled[:, None], return_dict=True)
    return torch.stack(list(output.pooler_output))


class _Lessons:
    """What is asked about the pictures, and the right answers."""

    def __init__(self, prompter: Prompter, corpus: SyntheticCorpus, rng: np.random.Generator) -> None:
        self._prompter = prompter
        self._rng = rng
        self._factors = corpus.scenes.factors
        self._emotic = torch.from_numpy(targets(corpus))
        self._words = {"basic": BASIC.labels, "compound": COMPOUND.labels, **GROUPS}
        self._single = {
            "basic": corpus.scenes.basic.astype(np.int64),
            "compound": corpus.scenes.compound.astype(np.int64),
        }
        for column, group in enumerate(GROUPS):
            self._single[group] = self._factors[:, column].astype(np.int64)

    def seen(self, outputs: Tensor, chosen: Rows) -> Tensor:
        """Return the loss of naming all factors from the image alone."""
        parts = torch.split(outputs.float(), [len(values) for values in GROUPS.values()], 1)
        losses = [
            F.cross_entropy(part, torch.from_numpy(self._single[group][chosen]))
            for group, part in zip(GROUPS, parts, strict=True)
        ]
        return torch.stack(losses).sum()

    def spoken(self, model: nn.Module, features: Tensor, chosen: Rows, context: bool) -> Tensor:
        """Return the loss of answering the EMOTIC question and, without context, some others."""
        if context:
            texts = [f"Context: {describe(self._factors[i], self._rng, 0.1)}. {QUESTIONS['emotic']}" for i in chosen]
            prefix, attention = self._prompter.batch(texts)
            suffixes = self._prompter.suffixes(None, EMOTIC.labels, reference=True)
        else:
            prefix = self._prompter.prefix("").expand(len(chosen), -1)
            attention = torch.ones_like(prefix)
            question = QUESTIONS["emotic"]
            suffixes = self._prompter.suffixes(question, EMOTIC.labels, reference=True)
        emotic = len(suffixes)
        owned: dict[str, slice] = {}
        for name in [] if context else self._rng.permutation(list(self._words))[:_ASKED].tolist():
            start = len(suffixes)
            suffixes += self._prompter.suffixes(QUESTIONS[name], self._words[name], reference=False)
            owned[name] = slice(start, len(suffixes))
        scores = answer_log_likelihoods(model, TokenTree.build(suffixes), prefix, attention, features, torch.float32)
        odds = scores[:, : emotic - 1] - scores[:, emotic - 1 : emotic]
        total = 6.0 * F.binary_cross_entropy_with_logits(odds, self._emotic[chosen])
        for name, rows in owned.items():
            answer = torch.from_numpy(self._single[name][chosen])
            known = answer >= 0
            total = total + F.cross_entropy(scores[known][:, rows], answer[known])
        return total


def _save(
    model: SmolVLMForConditionalGeneration, processor: Idefics3Processor, output: Path, facts: dict[str, int | str]
) -> None:
    with saving_to(output):
        copy.deepcopy(model).eval().to(torch.float16).save_pretrained(output)
        processor.save_pretrained(output)
    digest = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    origin = {
        "made_by": "carefl-secure pretrain",
        "data": f"synthetic public split, version {VERSION}, {_RECORDS} records",
        "sha256": digest,
        **facts,
    }
    write_atomically(output / _ORIGIN, f"{json.dumps(origin, indent=2)}\n".encode())
