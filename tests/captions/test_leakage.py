"""Emotion words in captions: found where they stand, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from carefl_secure.captions.controls import leakage
from carefl_secure.captions.prompts import describe_corpus
from carefl_secure.data.records import BASIC, COMPOUND, EMOTIC, PUBLISHED_SPACES, LabelSpace
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import DataError

Make = Callable[..., Any]


def one(pictures: Make, space: LabelSpace, caption: str) -> dict[str, tuple[bool, bool]]:
    corpus = pictures(0, labels=[()])
    corpus.space = space
    report = leakage(corpus, [caption])
    return {row.label: (row.word > 0, row.stem > 0) for row in report.labels if row.stem}


@pytest.mark.parametrize("space", PUBLISHED_SPACES.values(), ids=lambda s: s.name)
def test_every_label_is_found_by_its_own_word(pictures: Make, space: LabelSpace) -> None:
    for label in space.labels:
        for side in label.split("/"):
            assert one(pictures, space, f"A face of {side.upper()}, seen.")[label] == (True, True)


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("an angry man", "Anger"),
        ("he smiles happily", "Happiness"),
        ("looks afraid", "Fear"),
        ("surprisingly", "Surprise"),
        ("a saddened face", "Sadness"),
        ("a disgusted look", "Disgust"),
    ],
)
def test_stems_are_found(pictures: Make, caption: str, label: str) -> None:
    assert one(pictures, BASIC, caption) == {label: (False, True)}


@pytest.mark.parametrize(
    "caption",
    [
        "a saddle on a horse, a hanger, a painting, danger ahead",
        "engaged couples excluded? no: the engine and a peach",
        "a pleat, a paint pot, the angle of a wall",
    ],
)
def test_other_words_are_not(pictures: Make, caption: str) -> None:
    found = one(pictures, EMOTIC, caption)
    assert set(found) <= {"Engagement"} and ("engaged" in caption) == bool(found)


def test_a_compound_label_needs_all_its_words(pictures: Make) -> None:
    assert one(pictures, COMPOUND, "a happy person") == {}
    assert one(pictures, COMPOUND, "surprised and happy") == {"Happily Surprised": (False, True)}


def test_an_unknown_space_is_stemmed_by_rule(pictures: Make) -> None:
    space = LabelSpace("mine", ("Boredom", "Curiosity", "Calmness", "Joy"), False)
    assert set(one(pictures, space, "a calm room")) == {"Calmness"}
    assert set(one(pictures, space, "joyful boredom")) == {"Boredom"}
    assert one(pictures, space, "a joy")["Joy"] == (True, True)


def test_shares(pictures: Make) -> None:
    corpus = pictures(0, 1, 2, 3, labels=[(3,), (3,), (4,), (5,)])
    report = leakage(corpus, ["a happy child", "a park", "happiness", "an angry man"])
    rows = {row.label: row for row in report.labels}
    assert (report.captions, report.word, report.stem, report.own) == (4, 0.25, 0.75, 0.5)
    assert (rows["Happiness"].word, rows["Happiness"].stem, rows["Happiness"].own) == (0.25, 0.5, 0.5)
    assert rows["Anger"].own == 1.0 and rows["Sadness"].own == 0.0 and rows["Fear"].own is None
    text = json.dumps(report.as_json())
    assert "child" not in text and "park" not in text
    with pytest.raises(DataError):
        leakage(corpus, ["too few"])


def test_the_describer_names_no_emotion() -> None:
    corpus = synthetic_corpus("test", 60)
    said = describe_corpus(corpus, 0.5, 0)
    assert leakage(corpus, said).stem == 0.0
    assert leakage(corpus, [f"{caption}, in sadness" for caption in said]).stem == 1.0
