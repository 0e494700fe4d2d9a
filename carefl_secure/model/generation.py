"""Labels read from the text that the model writes, instead of from the likelihoods of the labels.

Greedy decoding gives a set of labels for each record and no score: F1, precision and recall follow,
average precision does not (see :class:`carefl_secure.model.label_scorer.LabelScorer`). Texts are
about a person: they are read here and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.captions.prompts import framed
from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import REFERENCE
from carefl_secure.model.vision.store import Features
from carefl_secure.model.vision.tiles import Tiles

_SEVERAL = 8  # labels that a constrained answer may name; annotators seldom tick more
_FREE = 12  # tokens of a free answer for each label that it may name
_CUT = re.compile(r"[,;\n]| and ")
_EDGE = " \t.:!?\"'*-"


PLAIN_ENGLISH = (
    "The weather was cold in the morning, and the children walked to school with their coats on.",
    "She opened the letter slowly, read it twice, and put it back into the drawer.",
    "Water boils at one hundred degrees, but on a high mountain it boils earlier.",
    "My brother has promised to repair the kitchen door before the guests arrive on Sunday.",
    "The museum is closed on Mondays, so we went to the park and fed the ducks instead.",
    "When the train finally left the station, most of the passengers were already asleep.",
)
"""Sentences on which `perplexity` shows whether a tuned model still speaks its language."""


@dataclass(frozen=True)
class GeneratedLabels:
    """A model's answers, read as labels."""

    decisions: npt.NDArray[np.bool_]  # [records, labels]
    unparsable: npt.NDArray[np.bool_]  # [records]: where no label could be read; they have none


def parse_labels(text: str, space: LabelSpace) -> tuple[int, ...] | None:
    """Read label ids, ascending, out of an answer; None where no label could be read.

    Where several labels may hold, the answer is cut at commas, semicolons, line ends and *and*. Each part that begins
    with a label counts once; other parts are skipped. ``None`` in the first place, and no label after it, is the empty
    set. Where one label holds, the label that begins first in the text counts, the longest of those. Case is ignored.
    """
    lowered = {label.casefold(): i for i, label in enumerate(space.labels)}
    if space.multi:
        parts = [part.strip(_EDGE).casefold() for part in _CUT.split(text)]
        found = {i for label, i in lowered.items() for part in parts if _begins(part, label)}
        if found:
            return tuple(sorted(found))
        return () if _begins(parts[0], REFERENCE.casefold()) else None
    best: tuple[int, int, int] | None = None
    for label, i in lowered.items():
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text.casefold())
        if match is not None:
            best = min(best or (len(text) + 1, 0, 0), (match.start(), -len(label), i))
    return None if best is None else (best[2],)


def _begins(part: str, label: str) -> bool:
    return re.match(rf"{re.escape(label)}(?!\w)", part) is not None


class TextScorer:
    """Lets a model answer in words, and reads them; ``constrained``: only labels, none twice, with commas between."""

    def __init__(self, scorer: LabelScorer, *, constrained: bool = False) -> None:
        self._scorer = scorer
        self._constrained = constrained
        base, space = scorer.adapter.base, scorer.space
        self._tok = base.processor.tokenizer
        prompter = base.prompter
        (self._end,) = prompter.ids("<end_of_utterance>")
        words = [*space.labels, REFERENCE] if space.multi else list(space.labels)
        self._answers = [tuple(prompter.ids(" " + word)) for word in words]
        self._comma = tuple(prompter.ids(","))
        longest = max(len(answer) for answer in self._answers) + len(self._comma)
        labels = min(_SEVERAL, len(space.labels)) if space.multi else 1
        self._most = labels * longest + 1 if constrained else max(_FREE, labels * longest)

    def all(self, features: Features, batch: int = 64, captions: Sequence[str] | None = None) -> GeneratedLabels:
        """Let the model answer about many records; features are [records, image tokens, width]."""
        if captions is not None and len(captions) != len(features):
            raise ConfigError(f"{len(captions)} captions do not fit {len(features)} records")
        self._scorer.adapter.module.eval()
        space = self._scorer.space
        decisions = np.zeros((len(features), len(space.labels)), np.bool_)
        unparsable = np.zeros(len(features), np.bool_)
        for start in range(0, len(features), batch):
            part = features[start : start + batch]
            said = captions[start : start + batch] if captions is not None else [""] * len(part)
            for row, text in enumerate(self._written(part, said), start):
                found = parse_labels(text, space)
                unparsable[row] = found is None
                decisions[row, list(found or ())] = True
        return GeneratedLabels(decisions, unparsable)

    def _written(self, features: Tensor | Tiles, captions: Sequence[str]) -> list[str]:
        base = self._scorer.adapter.base
        grids = features.grids if isinstance(features, Tiles) else None
        tiles = features.tiles if isinstance(features, Tiles) else features
        asked = [framed(caption, self._scorer.question) for caption in captions]
        prompts, attention = base.prompter.batch(asked, grids)
        length = prompts.shape[1]

        def follow(_: int, ids: Tensor) -> list[int]:
            return self.follow(tuple(ids[length:].tolist()))

        with torch.no_grad():
            out = self._scorer.adapter.module.get_base_model().generate(  # type: ignore[operator]
                input_ids=prompts.to(base.device),
                attention_mask=attention.to(base.device),
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=tiles.to(base.device))},
                max_new_tokens=self._most,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=self._end,
                pad_token_id=self._tok.pad_token_id,
                prefix_allowed_tokens_fn=follow if self._constrained else None,
            )
        return [str(self._tok.decode(row, skip_special_tokens=True)) for row in out[:, length:].tolist()]

    def follow(self, written: tuple[int, ...]) -> list[int]:
        """Return the tokens that may come after an unfinished constrained answer."""
        space, names = self._scorer.space, len(self._scorer.space.labels)
        found: set[int] = set()
        states: list[tuple[tuple[int, ...], frozenset[int]]] = [(written, frozenset())]
        while states:
            rest, used = states.pop()
            for place, answer in enumerate(self._answers):
                if place in used or (place == names and used):
                    continue  # no label twice, and "None" stands alone
                if len(rest) < len(answer):
                    if answer[: len(rest)] == rest:
                        found.add(answer[len(rest)])
                    continue
                if rest[: len(answer)] != answer:
                    continue
                after, taken = rest[len(answer) :], used | {place}
                open_ = space.multi and place < names and len(taken) < min(_SEVERAL, names)
                if not after:
                    found.add(self._end)
                if open_ and len(after) < len(self._comma) and self._comma[: len(after)] == after:
                    found.add(self._comma[len(after)])
                elif open_ and after[: len(self._comma)] == self._comma:
                    states.append((after[len(self._comma) :], taken))
        return sorted(found) or [self._end]


@torch.no_grad()
def perplexity(adapter: Adapter, texts: Sequence[str] = PLAIN_ENGLISH) -> float:
    """Return the perplexity of texts, each read alone: exp of the mean loss of their tokens under the adapter."""
    module, base = adapter.module, adapter.base
    module.eval()
    losses = []
    for text in texts:
        ids = torch.tensor([base.prompter.ids(text)], device=adapter.parameters[0][1].device)
        logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).double().mean().exp())
