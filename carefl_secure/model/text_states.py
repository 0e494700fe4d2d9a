"""What the frozen language model makes of an image with its caption: one vector per record, kept on the client."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.captions.prompts import framed
from carefl_secure.model.loader import Base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.vision.store import Features, note_size
from carefl_secure.model.vision.tiles import Tiles
from carefl_secure.progress import Reporter

_BATCH = 16
_TASK = "reading {} records with the frozen language model"


def prompts(
    base: Base, question: str, features: Tensor | Tiles, captions: Sequence[str] | None
) -> tuple[Tensor, Tensor]:
    """Return prompts and their masks, int64 [batch, length], padded on the left; a caption precedes the question."""
    grids = features.grids if isinstance(features, Tiles) else None
    return base.prompter.batch([framed(said, question) for said in captions or [""] * len(features)], grids)


@dataclass(frozen=True)
class TextStates:
    r"""Reads records with the frozen language model, whatever its adapter has become.

    With :math:`h_t` [width] the last hidden state, after the final norm, at token t of the prompt of T tokens up to
    where the answer begins, image and caption included, a record is read as

    .. math:: \frac{1}{T} \sum_{t=1}^{T} h_t

    Guarantees
    ----------
    A row depends on its own record, the question and the frozen base alone: each record goes through the model by
    itself, as in bfloat16 the length of a batch would change its rounding. `keep` stores it on this machine only, by
    the SHA-256 of the image's features and the prompt's tokens, where and as `FeatureStore` keeps vision features.
    """

    adapter: Adapter
    question: str

    def __call__(self, features: Tensor | Tiles, captions: Sequence[str] | None) -> Tensor:
        """Return the states of some records, float32 [batch, 1, width]; what is not stored is computed, not kept.

        Features that require a gradient are given one: an audit searches for them.
        """
        base, rows = self.adapter.base, self._prompts(features, captions)
        if not searched(features):
            keys = _keys(features, rows)
            if all(key in base.states for key in keys):
                return base.states.features(keys)[:].to(base.device)
        return torch.cat([self._read(features[i : i + 1], row) for i, row in enumerate(rows)])

    def keep(self, features: Features, captions: Sequence[str] | None, reporter: Reporter) -> None:
        """Compute and store the states of all records that the store lacks, in batches."""
        base, count = self.adapter.base, len(features)
        base.states.refresh(reporter)
        task, noted = _TASK.format(count), False
        reporter.start(task, count)
        with base.states.writing() as writer:
            for start in range(0, count, _BATCH):
                some = features[start : start + _BATCH]
                said = None if captions is None else captions[start : start + _BATCH]
                rows = self._prompts(some, said)
                for place, key in enumerate(_keys(some, rows)):
                    if key not in base.states:
                        if not noted:
                            note_size(base.states, count - start, reporter, what="language model states")
                            noted = True
                        one = some[place : place + 1].to(base.device)
                        writer.add([key], self._read(one, rows[place]).cpu())
                    reporter.advance(task)
        reporter.finish(task)

    def _prompts(self, features: Tensor | Tiles, captions: Sequence[str] | None) -> list[Tensor]:
        """Return the tokens of each record's prompt, without padding."""
        prefix, attention = prompts(self.adapter.base, self.question, features, captions)
        return [row[real] for row, real in zip(prefix, attention.bool(), strict=True)]

    def _read(self, features: Tensor | Tiles, tokens: Tensor) -> Tensor:
        """Return the state of one record, [1, 1, width]."""
        base: Any = self.adapter.module.get_base_model()
        tiles = features.tiles if isinstance(features, Tiles) else features
        with self.adapter.disabled(), torch.set_grad_enabled(searched(features)):
            hidden = base.model(
                input_ids=tokens[None].to(self.adapter.base.device),
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=tiles)},
                use_cache=False,
            ).last_hidden_state
        mean: Tensor = hidden.float().mean(1, keepdim=True)
        return mean


def searched(features: object) -> bool:
    """Return whether features are what a gradient is taken by."""
    return isinstance(features, Tensor) and features.requires_grad


def _keys(features: Tensor | Tiles, prompts: Sequence[Tensor]) -> list[bytes]:
    """Return the key of each record: SHA-256 over its features and the tokens of its prompt."""
    found = []
    for place, tokens in enumerate(prompts):
        one = features[place : place + 1]
        rows = one.tiles if isinstance(one, Tiles) else one
        digest = hashlib.sha256(tokens.numpy().tobytes())
        digest.update(rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        found.append(digest.digest())
    return found
