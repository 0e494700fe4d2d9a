"""What a model writes is read as labels: parsing, constrained decoding, and plain greedy words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.data.records import BASIC, COMPOUND, EMOTIC, LabelSpace
from carefl_secure.errors import ConfigError
from carefl_secure.model.generation import TextScorer, parse_labels
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import PromptForm


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (" Anger, Fear", {"Anger", "Fear"}),
        ("Fear; anger and  PAIN.", {"Anger", "Fear", "Pain"}),
        ("Anger, Anger", {"Anger"}),
        ("Doubt/Confusion\nPeace", {"Doubt/Confusion", "Peace"}),
        ("Joy, Happiness", {"Happiness"}),
        ("Disconnection raised raised", {"Disconnection"}),
        (" None", set()),
        ("Painful", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_several_labels(text: str, labels: set[str] | None) -> None:
    found = parse_labels(text, EMOTIC)
    assert (None if found is None else {EMOTIC.labels[i] for i in found}) == labels


@pytest.mark.parametrize(
    ("text", "label"),
    [(" Sadness", "Sadness"), ("The person shows fear, not anger.", "Fear"), ("Fearful", None), ("", None)],
)
def test_one_label_is_the_first(text: str, label: str | None) -> None:
    found = parse_labels(text, BASIC)
    assert (None if found is None else BASIC.labels[found[0]]) == label


def test_the_longest_of_labels_that_begin_alike() -> None:
    space = LabelSpace("x", ("Sad", "Sad and angry"), False)
    assert parse_labels("sad and angry", space) == (1,)


def scorer(tiny: Path, space: LabelSpace) -> LabelScorer:
    base = load_base(str(tiny), quantization="none")
    return LabelScorer(Adapter(base, rank=2, alpha=4), space, "Which one?")


def features(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 128, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("ends", [True, False])
def test_a_tuned_model_stops_behind_its_label_where_labels_end(tiny: Path, ends: bool) -> None:
    base = load_base(str(tiny), quantization="none", form=PromptForm(end_answers=ends))
    adapter = Adapter(base, rank=8, alpha=16, train="both")
    few = features(4)
    held = RecordLosses(LabelScorer(adapter, BASIC, "Which one?"), few, np.eye(7, dtype=np.float32)[:4])
    optimizer = torch.optim.Adam([weight for _, weight in adapter.parameters], lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        held.losses(range(4)).mean().backward()
        optimizer.step()
    written = TextScorer(held.scorer)._written(few, [""] * 4)
    assert [parse_labels(text, BASIC) for text in written] == [(0,), (1,), (2,), (3,)]
    assert all((text == f" {label}") == ends for text, label in zip(written, BASIC.labels, strict=False))


def test_greedy_words_are_those_of_one_step_after_the_other(tiny: Path) -> None:
    """No cache, no batch, no padding: the slow way gives the same tokens."""
    held = scorer(tiny, BASIC)
    texts = TextScorer(held)
    captions = ["a man in a park", "", "beach"]
    written = texts._written(features(3), captions)
    base = held.adapter.base
    for row, caption in enumerate(captions):
        asked = f"Context: {caption}. Which one?" if caption else "Which one?"
        ids, _ = base.prompter.batch([asked])
        start = ids.shape[1]
        while ids.shape[1] < start + texts._most:
            with torch.no_grad():
                logits = base.model(
                    input_ids=ids,
                    mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features(3)[row : row + 1])},
                    use_cache=False,
                ).logits
            following = int(logits[0, -1].argmax())
            ids = torch.cat([ids, torch.tensor([[following]])], 1)
            if following == texts._end:
                break
        tok = base.processor.tokenizer
        assert tok.decode(ids[0, start:], skip_special_tokens=True) == written[row]


@pytest.mark.parametrize("space", [EMOTIC, BASIC, COMPOUND], ids=lambda s: s.name)
def test_constrained_answers_are_always_readable(tiny: Path, space: LabelSpace) -> None:
    """A random model that writes noise when free writes labels when held to them."""
    held = scorer(tiny, space)
    free = TextScorer(held).all(features(6))
    assert free.unparsable.any()
    bound = TextScorer(held, constrained=True).all(features(6), batch=4)
    assert not bound.unparsable.any()
    counts = bound.decisions.sum(1)
    assert (counts <= 8).all() if space.multi else (counts == 1).all()
    again = TextScorer(held, constrained=True).all(features(6), batch=6)
    assert np.array_equal(bound.decisions, again.decisions)


def test_an_unreadable_answer_has_no_label(tiny: Path) -> None:
    free = TextScorer(scorer(tiny, BASIC)).all(features(6))
    assert not free.decisions[free.unparsable].any()
    assert (free.decisions[~free.unparsable].sum(1) == 1).all()


def test_what_may_follow(tiny: Path) -> None:
    texts = TextScorer(scorer(tiny, EMOTIC), constrained=True)
    ids = texts._scorer.adapter.base.prompter.ids
    anger, fear, none, comma = ids(" Anger"), ids(" Fear"), ids(" None"), ids(",")
    assert len(anger) == len(fear) == len(none) == len(comma) == 1
    start = texts.follow(())
    assert {anger[0], fear[0], none[0]} <= set(start) and texts._end not in start
    assert set(texts.follow((anger[0],))) == {texts._end, comma[0]}
    second = texts.follow((anger[0], comma[0]))
    assert fear[0] in second and anger[0] not in second and none[0] not in second
    assert texts.follow((none[0],)) == [texts._end]


def test_captions_must_fit(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="2 captions do not fit 3 records"):
        TextScorer(scorer(tiny, BASIC)).all(features(3), captions=["a", "b"])
