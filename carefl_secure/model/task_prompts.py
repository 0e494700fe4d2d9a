"""What the model is asked: five wordings that ship with the package, or a file of one's own.

A wording may hold ``{question}``, the question that the embedded model was taught for the label
space, and ``{labels}``, all labels of the space with commas between. ``default`` is the question
alone. ``expert`` is meant for real SmolVLM2 checkpoints: words that the embedded model's training
text lacks fall into many byte pieces.
"""

from __future__ import annotations

import string
from pathlib import Path

from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError
from carefl_secure.model.embedded import QUESTIONS

TASK_PROMPTS = ("default", "list", "scene", "face", "expert")
"""The wordings that ship with the package; each is a text file in the folder of this module."""

_FOLDER = Path(__file__).parent / "prompt_files"
_PLACES = ("question", "labels")
_MOST = 2000  # characters, before the labels are put in
_QUESTION = "Which expression does the person show?"


def prompt_template(choice: str) -> str:
    """Return the wording of a name, or the text of a file on one line, with its placeholders.

    ``choice`` is one of :data:`TASK_PROMPTS` or the path of a text file. A text that is empty, too
    long, or holds another placeholder or signs that models use for marks raises `ConfigError`.
    """
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
        question=QUESTIONS.get(space.name, _QUESTION), labels=", ".join(space.labels)
    )
