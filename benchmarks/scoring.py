"""Scoring 26 labels behind one prompt: one packed forward beside one forward for each label.

    python benchmarks/scoring.py [--quick] [--json]

Both score the 26 categories of EMOTIC and the answer "None" for the same images and weights: ours
as a token tree behind the shared prefix (``model/label_tree.py``), the plain way with prompt and
one answer at a time, and logits for the answer only. They play in turns within one process; the
figure is the least CPU time of a turn. Models: (1) the embedded one, (2) a SmolVLM with the text
shape of
SmolVLM2-256M (576 wide, 30 layers, vocabulary 49,280, 64 image tokens; random weights, a tiny
vision tower that is not run). To the tokenizer of the first a label is one token or two; for the
second every label is made of three random tokens and the end mark, as a real one would cut it.

Bars: at least 4 times faster, and no log-likelihood further away than 1e-4, in float32.

About two minutes on one core and 2 GB; ``--quick`` takes 4 of the 30 layers and fewer turns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from _bench import Bar, Report, arguments, cpu, finish, say

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.data.records import EMOTIC
from carefl_secure.model.embedded import QUESTIONS, build_processor
from carefl_secure.model.label_tree import TokenTree, answer_log_likelihoods
from carefl_secure.model.loader import load_base
from carefl_secure.model.prompts import Prompter

FASTER, CLOSE = 4.0, 1e-4


@dataclass
class Subject:
    """A model and what it is asked."""

    name: str
    model: Any
    prompter: Prompter
    features: Tensor
    suffixes: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Tokenise the prompt and the answers once, for both ways."""
        if not self.suffixes:
            self.suffixes = self.prompter.suffixes(None, EMOTIC.labels, reference=True)
        prefix, _ = self.prompter.batch([QUESTIONS["emotic"]])
        self.prefix = prefix.expand(len(self.features), -1)
        self.tree = TokenTree.build(self.suffixes)

    def packed(self) -> Tensor:
        """Score all answers in one forward, shape [images, answers]."""
        with torch.no_grad():
            return answer_log_likelihoods(
                self.model, self.tree, self.prefix, torch.ones_like(self.prefix), self.features, torch.float32
            )

    def plain(self) -> Tensor:
        """Score each answer in a forward of its own, shape [images, answers]."""
        columns = []
        for _, answer in self.suffixes:
            words = torch.tensor(answer).expand(len(self.features), -1)
            with torch.no_grad():
                logits = self.model(
                    input_ids=torch.cat([self.prefix, words], 1),
                    mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=self.features)},
                    use_cache=False,
                    logits_to_keep=len(answer) + 1,
                ).logits
            log_p = logits[:, :-1].float().log_softmax(-1)
            columns.append(log_p.gather(2, words[..., None]).sum((1, 2)))
        return torch.stack(columns, 1)


def embedded(images: int) -> Subject:
    """Return the embedded model."""
    base = load_base(quantization="none")
    features = torch.randn(images, 16, 128, generator=torch.Generator().manual_seed(0))
    return Subject("embedded", base.model, base.prompter, features)


def large(images: int, layers: int) -> Subject:
    """Return a model with the text shape of SmolVLM2-256M and random weights."""
    processor = build_processor()
    processor.image_seq_len = 64
    tok = processor.tokenizer
    special = {"pad_token_id": tok.pad_token_id, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 256,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": layers,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            **special,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config).eval()
    model.requires_grad_(False)
    features = torch.randn(images, 64, 576, generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    words = torch.randint(2000, 49_000, (len(EMOTIC.labels) + 1, 3), generator=draw).tolist()
    suffixes = [([], [*word, int(tok.eos_token_id)]) for word in words]
    name = f"256M shape, {layers} layers"
    return Subject(name, model, Prompter(processor), features, suffixes)


def measure(subject: Subject, turns: int, report: Report) -> None:
    """Play both ways in turns and add the row and the bars of one model."""
    say(f"{subject.name}: {len(subject.features)} images, {turns} turns")
    ways: dict[str, Callable[[], Tensor]] = {"packed": subject.packed, "plain": subject.plain}
    least = dict.fromkeys(ways, float("inf"))
    found: dict[str, Tensor] = {name: way() for name, way in ways.items()}  # and warm
    for _ in range(turns):
        for name, way in ways.items():
            found[name], seconds = cpu(way)
            least[name] = min(least[name], seconds)
    apart = float((found["packed"] - found["plain"]).abs().max())
    faster = least["plain"] / least["packed"]
    images = len(subject.features)
    report.rows.append(
        {
            "model": subject.name,
            "images": images,
            "prompt tokens": subject.prefix.shape[1],
            "tree nodes": len(subject.tree.parents),
            "packed, ms/image": 1000 * least["packed"] / images,
            "plain, ms/image": 1000 * least["plain"] / images,
            "faster": faster,
            "apart": apart,
        }
    )
    report.bars.append(Bar(f"{subject.name}: times faster than one forward a label", faster, FASTER))
    report.bars.append(Bar(f"{subject.name}: largest difference in log-likelihood", apart, CLOSE, at_least=False))


def main() -> int:
    """Measure both models."""
    asked = arguments(__doc__)
    torch.set_num_threads(1)
    report = Report("Scoring 26 labels and None behind one prompt, float32, one thread")
    measure(embedded(4 if asked.quick else 16), 2 if asked.quick else 5, report)
    measure(large(1, 4 if asked.quick else 30), 1 if asked.quick else 2, report)
    report.notes.append("CPU time, least of the turns; both ways in turns within one process.")
    return finish(report, asked.json)


if __name__ == "__main__":
    sys.exit(main())
