"""What the model is asked, and from words to token ids: the prompt before the question and the answers behind it.

The question is one of five wordings that ship with the package, or a file of one's own. A wording may hold
``{question}``, the question that the embedded model was taught for the label space, and ``{labels}``, all labels of
the space with commas between. ``default`` is the question alone. ``expert`` is meant for real SmolVLM2 checkpoints:
words that the embedded model's training text lacks fall into many byte pieces.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.smolvlm import processing_smolvlm as smolvlm

from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError, ModelError
from carefl_secure.model.embedded import QUESTIONS

REFERENCE = "None"  # the answer that a label's likelihood is compared with where several labels may hold at once

Grid = tuple[int, int]  # rows and columns of tiles that an image is cut into
WHOLE: Grid = (0, 0)  # an image that is one tile, not cut
_COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_END = "<end_of_utterance>"
_PLACE = "QUESTION"  # stands for the question where the template is read
_TEMPLATE = "use a SmolVLM2 checkpoint with its chat_template file, or the embedded model"


@dataclass(frozen=True)
class Shots:
    """Frames of one clip in place of an image, by the whole ``seconds`` from the first of them."""

    seconds: tuple[int, ...]


Layout = Grid | Shots


@dataclass(frozen=True)
class PromptForm:
    """How images and answers stand in a prompt."""

    end_answers: bool | None = None  # see Prompter; None: with every base but the embedded one, trained without
    image_splitting: bool = False  # cut an image into tiles, as the checkpoints' own default is
    longest_edge: int | None = None  # that the longer side is brought to first; None: the processor's own


class Prompter:
    r"""Builds prompts in the chat form of a checkpoint, token by token as its own processor does.

    The form is read from the SmolVLM or Idefics3 processor's chat template, for SmolVLM2
    ``<|im_start|>User:<image>QUESTION<end_of_utterance>\nAssistant:``, and ``<image>`` is spelled out by the
    processor; `ModelError` where it has no such template or tokens. With ``end_answers`` every answer ends with the
    end-of-utterance token, as in the checkpoints' own training: a model tuned without it does not learn to stop behind
    a label.
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
        clip = [{"role": "user", "content": [{"type": "video"}]}]  # processors use this template for it, not their own
        self._clip_head = str(processor.apply_chat_template(clip, smolvlm.DEFAULT_CHAT_TEMPLATE)).split("<video>")[0]
        if not found or self._head.count("<image>") != 1 or not self._turn.startswith(_END):
            raise ModelError(f"the processor's chat template makes {form!r} of an image and a question; {_TEMPLATE}")

    def _opened(self, layout: Layout) -> str:
        """Return the prompt up to the question, for an image of so many rows and columns of tiles, or for a clip."""
        rows, columns = ([[number]] for number in (WHOLE if isinstance(layout, Shots) else layout))
        image = self._processor.replace_image_token({"rows": rows, "cols": columns}, 0)
        if not isinstance(layout, Shots):
            return self._head.replace("<image>", image)
        count, length = len(layout.seconds), timedelta(seconds=layout.seconds[-1])
        clip = smolvlm.DEFAULT_VIDEO_INTRO.format(frame_count=_COUNTS[count], video_duration=str(length))
        for second in layout.seconds:
            time = f"{second // 60:02d}:{second % 60:02d}"
            clip += smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp=time) + image
        return self._clip_head + clip + smolvlm.DEFAULT_MEDIA_OUTTRO

    def ids(self, text: str) -> list[int]:
        """Tokenise ``text`` as it stands, adding nothing."""
        return list(self._tok(text, add_special_tokens=False)["input_ids"])

    def prefix(self, text: str) -> Tensor:
        """Return the prompt up to and including ``text``, shape [1, length]; no turn is closed."""
        return torch.tensor([self.ids(self._opened(WHOLE) + text)])

    def batch(self, texts: Sequence[str], grids: Sequence[Layout] | None = None) -> tuple[Tensor, Tensor]:
        """Return prompts, left-padded: ids and attention, [batch, length]; ``grids`` has images' tiles or frames."""
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
        """Tokenise answers so that none is the beginning of another; ``reference`` appends :data:`REFERENCE`.

        Each ends with the end-of-utterance token under ``end_answers``, or where the labels alone are not prefix-free.
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
        """Return (question tokens, answer tokens) pairs for a token tree; None where the prefix has the question."""
        asked = [] if question is None else self.ids(question) + self.turn()
        return [(asked, row) for row in self.answers(labels, reference=reference)]


TASK_PROMPTS = ("default", "list", "scene", "face", "expert")
"""The wordings that ship with the package; each is a text file in the folder of this module."""

_FOLDER = Path(__file__).parent / "prompt_files"
_PLACES = ("question", "labels")
_MOST = 2000  # characters, before the labels are put in
_DEFAULT_QUESTION = "Which expression does the person show?"


def prompt_template(choice: str) -> str:
    """Return the wording of a name of :data:`TASK_PROMPTS`, or of a file; ConfigError for one that cannot be used."""
    path = _FOLDER / f"{choice}.txt" if choice in TASK_PROMPTS else Path(choice)
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no task prompt {choice!r}: {error}. Set model.prompt to one of "
            f"{', '.join(TASK_PROMPTS)}, or to the path of a text file"
        ) from error
    if not text or len(text) > _MOST:
        raise ConfigError(f"the task prompt {choice} holds {len(text)} characters; 1 to {_MOST} are allowed")
    if set(text) & set("<>|"):
        raise ConfigError(
            f"the task prompt {choice} holds one of the signs < > |, which models use for marks "
            "of their own; leave them out"
        )
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"the task prompt {choice} has a brace too many: {error}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in _PLACES or form or conversion):
            raise ConfigError(
                f"the task prompt {choice} has a placeholder {{{name}}}; only {{question}} and {{labels}} are known"
            )
    return text


def task_question(choice: str, space: LabelSpace) -> str:
    """Return what the prompt asks about an image under a label space."""
    return prompt_template(choice).format(
        question=QUESTIONS.get(space.name, _DEFAULT_QUESTION), labels=", ".join(space.labels)
    )
