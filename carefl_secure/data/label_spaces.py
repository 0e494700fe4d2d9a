"""The label spaces of the published corpora, in their canonical orders."""

from __future__ import annotations

from collections.abc import Mapping

from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError


def _space(name: str, labels: str, multi: bool = False) -> LabelSpace:
    return LabelSpace(name, tuple(labels.split(", ")), multi)


EMOTIC = _space(
    "emotic",
    "Affection, Anger, Annoyance, Anticipation, Aversion, Confidence, Disapproval, Disconnection, Disquietment, "
    "Doubt/Confusion, Embarrassment, Engagement, Esteem, Excitement, Fatigue, Fear, Happiness, Pain, Peace, "
    "Pleasure, Sadness, Sensitivity, Suffering, Surprise, Sympathy, Yearning",
    multi=True,
)
"""The 26 discrete categories of EMOTIC (Kosti et al., arXiv 2003.13401), alphabetical."""

BASIC = LabelSpace("basic", ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"), multi=False)
"""The seven basic expressions in the order of RAF-DB; RAF-DB's own ids start at 1."""

COMPOUND = _space(
    "compound",
    "Happily Surprised, Happily Disgusted, Sadly Fearful, Sadly Angry, Sadly Surprised, Sadly Disgusted, "
    "Fearfully Angry, Fearfully Surprised, Angrily Surprised, Angrily Disgusted, Disgustedly Surprised",
)
"""The eleven compound expressions in the order of RAF-DB; RAF-DB's own ids start at 1."""

CAERS = LabelSpace("caers", ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"), multi=False)
"""The seven classes of CAER-S in the order of its public annotation files, from 0."""

CEXPR = _space(
    "cexpr",
    "Fearfully Surprised, Happily Surprised, Sadly Surprised, Disgustedly Surprised, "
    "Angrily Surprised, Sadly Fearful, Sadly Angry",
)
"""The seven classes of the C-EXPR-DB challenge, from 0; its id 7, Other, is never scored."""

FER = LabelSpace("fer2013", ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"), multi=False)
"""The seven classes of FER-2013 in the order of its table, from 0."""

COMPOUND_TO_CEXPR: Mapping[int, int] = {
    place: CEXPR.labels.index(label) for place, label in enumerate(COMPOUND.labels) if label in CEXPR.labels
}
"""From an id of :data:`COMPOUND` to that of :data:`CEXPR`; four compound classes have none."""

SPACES = {space.name: space for space in (EMOTIC, BASIC, COMPOUND)}
"""The spaces of the embedded corpus; the tokenizer of the embedded model is made from them."""

PUBLISHED_SPACES: Mapping[str, LabelSpace] = {**SPACES, **{space.name: space for space in (CAERS, CEXPR, FER)}}
"""The spaces of all published corpora."""


def label_space(name: str) -> LabelSpace:
    """Return a published label space by name."""
    if name not in SPACES:
        raise ConfigError(f"unknown label space {name!r}; choose one of {', '.join(SPACES)}")
    return SPACES[name]
