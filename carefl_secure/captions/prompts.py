"""What a captioner is asked: three texts that ship with the package, or a file of one's own."""

from __future__ import annotations

from pathlib import Path

from carefl_secure.errors import ConfigError

_FOLDER = Path(__file__).parent / "prompt_files"

PROMPTS = ("scene", "person", "both")
"""The prompts that ship with the package; each is a text file in the folder of this module."""

_MOST = 4000
_LONGEST_CAPTION = 1000  # characters; a caption that runs on is cut at a word
# What a tokenizer could take for one of its own marks: a caption is words and nothing else.
_MARKS = str.maketrans({"<": " ", ">": " ", "|": " "})


def caption_prompt(choice: str) -> str:
    """Return the prompt of a name of :data:`PROMPTS`, or the text of a file at a path.

    A file that is empty, too long or no text raises `ConfigError`.
    """
    path = _FOLDER / f"{choice}.txt" if choice in PROMPTS else Path(choice)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no prompt {choice!r}: {error}. Choose one of {', '.join(PROMPTS)}, or give the path of a text file"
        ) from error
    text = " ".join(text.split())
    if not text or len(text) > _MOST:
        raise ConfigError(f"the prompt file {choice} holds {len(text)} characters; 1 to {_MOST} are allowed")
    if text.translate(_MARKS) != text:
        raise ConfigError(
            f"the prompt file {choice} holds one of the signs < > |, which models use for marks "
            "of their own; leave them out"
        )
    return text


def plain(caption: str) -> str:
    """Return a caption as words on one line: no marks, no final stop, at most 1000 characters."""
    text = " ".join(caption.translate(_MARKS).split())
    if len(text) > _LONGEST_CAPTION:
        text = text[:_LONGEST_CAPTION].rpartition(" ")[0] or text[:_LONGEST_CAPTION]
    return text.rstrip(" .")


def framed(caption: str | None, question: str) -> str:
    """Put a caption before a question as the embedded model was taught; no caption, no change."""
    words = plain(caption or "")
    return f"Context: {words}. {question}" if words else question
