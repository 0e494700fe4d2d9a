"""What a captioner is asked, and what it says: three texts that ship with the package, or a file of one's own.

On the embedded corpus a describer that knows the drawn scene stands in for the captioner. It looks at no image. What
it says is true of the drawing except for errors of a set rate, so it measures what a caption of that quality is worth,
not what a captioning model can do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import SyntheticCorpus
from carefl_secure.data.synthetic.scene import GROUPS
from carefl_secure.errors import ConfigError

_FOLDER = Path(__file__).parent / "prompt_files"

PROMPTS = ("scene", "person", "both")
"""The prompts that ship with the package; each is a text file in the folder of this module."""

_MOST = 4000
_LONGEST_CAPTION = 1000  # characters; a caption that runs on is cut at a word
# What a tokenizer could take for one of its own marks: a caption is words and nothing else.
_MARKS = str.maketrans({"<": " ", ">": " ", "|": " "})


def caption_prompt(choice: str) -> str:
    """Return the prompt of a name of :data:`PROMPTS`, or the text of a file; `ConfigError` where it is none."""
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


_CONTEXT = ("posture", "setting", "prop", "light")

STAND_IN = (
    "the captions of the embedded corpus come from a describer that knows the drawn scene "
    "(error rate {rate:g}); no captioning model was run"
)
"""What every user of the describer must say; format it with ``rate``."""


def describe(factors: npt.NDArray[np.int8], rng: np.random.Generator, error_rate: float = 0.0) -> str:
    """Describe posture, setting, prop and light of a row of `Scenes.factors`: ``"arms raised, beach, gift, bright"``.

    ``error_rate`` is the chance with which each of the four facts is replaced by a random value of its group.
    """
    words = []
    for group, value in zip(GROUPS, factors, strict=True):
        if group not in _CONTEXT:
            continue
        wrong = rng.random() < error_rate
        word = GROUPS[group][int(rng.integers(len(GROUPS[group]))) if wrong else int(value)]
        words.append(f"arms {word}" if group == "posture" else word)
    return ", ".join(words)


def describe_corpus(corpus: Corpus, error_rate: float, seed: int) -> list[str]:
    """Describe every record of a `SyntheticCorpus` or a subset; any other corpus raises `ConfigError`.

    Guarantees
    ----------
    A record's words depend on its own scene, its own key and the seed: on no other record. So a per-record privacy
    guarantee of what is trained on them holds.
    """
    if not 0 <= error_rate <= 1:
        raise ConfigError(f"an error rate lies between 0 and 1, not at {error_rate:g}")
    if isinstance(corpus, Subset):
        whole = describe_corpus(corpus.corpus, error_rate, seed)
        return [whole[index] for index in corpus.indices]
    if not isinstance(corpus, SyntheticCorpus):
        raise ConfigError(
            f"{corpus.name} was not drawn here, so nothing is known of its scenes; make captions "
            "with 'carefl-secure caption' and name their folder in model.context_cache"
        )
    out = []
    for record, factors in zip(corpus.records, corpus.scenes.factors, strict=True):
        digest = hashlib.sha256(f"carefl-describer/{seed}/{record.key}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint64))
        out.append(describe(factors, rng, error_rate))
    return out
