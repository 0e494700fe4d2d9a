"""From words to token ids: the prompt before the image's question and the answers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carefl_secure.errors import ModelError

REFERENCE = "None"
"""The answer that a label's likelihood is compared with where several labels may hold at once."""

Grid = tuple[int, int]
"""Rows and columns of tiles that an image is cut into."""

WHOLE: Grid = (0, 0)
"""An image that is one tile, not cut."""

_END = "<end_of_utterance>"
_PLACE = "QUESTION"  # stands for the question where the template is read
_TEMPLATE = "use a SmolVLM2 checkpoint with its chat_template file, or the embedded model"


@dataclass(frozen=True)
class PromptForm:
    """How images and answers stand in a prompt.

    Parameters
    ----------
    end_answers : bool or None
        Whether labels end with the end-of-utterance token (`Prompter`); None: with every base but
        the embedded one, whose pretraining put none behind a label.
    image_splitting : bool
        Whether an image is cut into tiles, as the checkpoints' own default is.
    longest_edge : int or None
        Length that the longer side of an image is brought to first; None: the processor's own.
    """

    end_answers: bool | None = None
    image_splitting: bool = False
    longest_edge: int | None = None


class Prompter:
    r"""Builds prompts in the chat form of a checkpoint, token by token as its own processor does.

    The form is read from the processor's chat template, for SmolVLM2
    ``<|im_start|>User:<image>QUESTION<end_of_utterance>\nAssistant:``, and ``<image>`` is spelled
    out by the processor. A processor without such a template or tokens raises `ModelError`.

    Parameters
    ----------
    processor : object
        A SmolVLM or Idefics3 processor.
    end_answers : bool
        Whether every answer ends with the end-of-utterance token, as in the checkpoints' own
        training. A model that is tuned without it does not learn to stop behind a label.
    """

    def __init__(self, processor: Any, *, end_answers: bool = False) -> None:
        self._processor, self._tok, self.end_answers = processor, processor.tokenizer, end_answers
        needed = ("<image>", "<fake_token_around_image>", "<global-img>", _END)
        vocabulary = self._tok.get_vocab()
        missing = [token for token in needed if token not in vocabulary]
        if missing:
            raise ModelError(
                f"the tokenizer has no token {missing[0]!r}: this is not a SmolVLM2 processor; "
                "use a SmolVLM2 checkpoint or the embedded model"
            )
        content = [{"type": "image"}, {"type": "text", "text": _PLACE}]
        try:
            form = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        except (TypeError, ValueError) as error:
            raise ModelError(f"the processor has no chat template that can be used: {error}; {_TEMPLATE}") from error
        self._head, found, self._turn = str(form).partition(_PLACE)
        if not found or self._head.count("<image>") != 1 or not self._turn.startswith(_END):
            raise ModelError(f"the processor's chat template makes {form!r} of an image and a question; {_TEMPLATE}")

    def _opened(self, grid: Grid) -> str:
        """Return the prompt up to the question, for an image of so many rows and columns of tiles."""
        rows, columns = ([[number]] for number in grid)
        image = self._processor.replace_image_token({"rows": rows, "cols": columns}, 0)
        return self._head.replace("<image>", image)

    def ids(self, text: str) -> list[int]:
        """Tokenise ``text`` as it stands, adding nothing."""
        return list(self._tok(text, add_special_tokens=False)["input_ids"])

    def prefix(self, text: str) -> Tensor:
        """Return the prompt up to and including ``text``, shape [1, length]; no turn is closed."""
        return torch.tensor([self.ids(self._opened(WHOLE) + text)])

    def batch(self, texts: Sequence[str], grids: Sequence[Grid] | None = None) -> tuple[Tensor, Tensor]:
        """Return whole prompts, one per text, left-padded: ids and attention, [batch, length].

        ``grids`` has the tiles of each image, as (rows, columns); by default every image is whole.
        """
        turn = self.turn()
        each = [WHOLE] * len(texts) if grids is None else grids
        rows = [self.ids(self._opened(grid) + text) + turn for text, grid in zip(texts, each, strict=True)]
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), int(self._tok.pad_token_id))
        attention = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            attention[i, longest - len(row) :] = 1
        return ids, attention

    def text(self, question: str) -> str:
        """Return a whole prompt as the chat template writes it, with ``<image>`` for the image."""
        return self._head + question + self._turn

    def turn(self) -> list[int]:
        """Return the tokens that close the user's turn and open the assistant's."""
        return self.ids(self._turn)

    def answer_texts(self, labels: Sequence[str], *, reference: bool) -> list[str]:
        """Return the texts that `answers` tokenises."""
        rows = self.answers(labels, reference=reference)
        words = [*labels, REFERENCE] if reference else list(labels)
        (end,) = self.ids(_END)
        return [f" {word}{_END if row[-1] == end else ''}" for word, row in zip(words, rows, strict=True)]

    def answers(self, labels: Sequence[str], *, reference: bool) -> list[list[int]]:
        """Tokenise answers so that none is the beginning of another.

        Under ``end_answers``, and where the labels alone are not prefix-free, every label ends with
        the end-of-utterance token. ``reference`` appends :data:`REFERENCE` as the last answer.
        """
        words = [*labels, REFERENCE] if reference else list(labels)
        rows = [self.ids(" " + word) for word in words]
        clash = any(
            i != j and len(a) <= len(b) and b[: len(a)] == a for i, a in enumerate(rows) for j, b in enumerate(rows)
        )
        end = self.ids(_END)
        return [row + end for row in rows] if clash or self.end_answers else rows

    def suffixes(
        self, question: str | None, labels: Sequence[str], *, reference: bool
    ) -> list[tuple[list[int], list[int]]]:
        """Return (question tokens, answer tokens) pairs for a token tree.

        ``question`` is None where the prefix already holds the question and the opened turn.
        """
        asked = [] if question is None else self.ids(question) + self.turn()
        return [(asked, row) for row in self.answers(labels, reference=reference)]
