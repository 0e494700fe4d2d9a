"""From words to token ids: the prompt before the image's question and the answers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carefl_secure.errors import ModelError

REFERENCE = "None"
"""The answer that a label's likelihood is compared with where several labels may hold at once."""

_END = "<end_of_utterance>"


class Prompter:
    r"""Builds prompts in the chat form of the SmolVLM2 checkpoints.

    ``<|im_start|>User:<image>QUESTION<end_of_utterance>\nAssistant:`` with ``<image>`` spelled out
    as the processor does for one tile. A tokenizer without these tokens raises `ModelError`.
    """

    def __init__(self, processor: Any) -> None:
        self._tok = processor.tokenizer
        needed = ("<image>", "<fake_token_around_image>", "<global-img>", _END)
        vocabulary = self._tok.get_vocab()
        missing = [token for token in needed if token not in vocabulary]
        if missing:
            raise ModelError(
                f"the tokenizer has no token {missing[0]!r}: this is not a SmolVLM2 processor; "
                "use a SmolVLM2 checkpoint or the embedded model"
            )
        image = "<image>" * int(processor.image_seq_len)
        around = "<fake_token_around_image>"
        self._head = f"<|im_start|>User:{around}<global-img>{image}{around}"

    def ids(self, text: str) -> list[int]:
        """Tokenise ``text`` as it stands, adding nothing."""
        return list(self._tok(text, add_special_tokens=False)["input_ids"])

    def prefix(self, text: str) -> Tensor:
        """Return the prompt up to and including ``text``, shape [1, length]; no turn is closed."""
        return torch.tensor([self.ids(self._head + text)])

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return whole prompts, one per text, left-padded: ids and attention, [batch, length]."""
        rows = [self.ids(self._head + text) + self.turn() for text in texts]
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), int(self._tok.pad_token_id))
        attention = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            attention[i, longest - len(row) :] = 1
        return ids, attention

    def turn(self) -> list[int]:
        """Return the tokens that close the user's turn and open the assistant's."""
        return self.ids(f"{_END}\nAssistant:")

    def answers(self, labels: Sequence[str], *, reference: bool) -> list[list[int]]:
        """Tokenise answers so that none is the beginning of another.

        Where the labels alone are prefix-free nothing is added; otherwise every label ends with the
        end-of-utterance token. ``reference`` appends :data:`REFERENCE` as the last answer.
        """
        words = [*labels, REFERENCE] if reference else list(labels)
        rows = [self.ids(" " + word) for word in words]
        clash = any(
            i != j and len(a) <= len(b) and b[: len(a)] == a for i, a in enumerate(rows) for j, b in enumerate(rows)
        )
        end = self.ids(_END)
        return [row + end for row in rows] if clash else rows

    def suffixes(
        self, question: str | None, labels: Sequence[str], *, reference: bool
    ) -> list[tuple[list[int], list[int]]]:
        """Return (question tokens, answer tokens) pairs for a token tree.

        ``question`` is None where the prefix already holds the question and the opened turn.
        """
        asked = [] if question is None else self.ids(question) + self.turn()
        return [(asked, row) for row in self.answers(labels, reference=reference)]
