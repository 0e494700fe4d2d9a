"""One loss per record, each depending on its own record only; scores that fit the losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from carefl_secure.data.records import BASIC, EMOTIC, LabelSpace
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import Base, load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import PromptForm
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import SilentReporter


@pytest.fixture()
def base(tiny: Path) -> Base:
    return load_base(str(tiny), quantization="nf4")


def learner(base: Base, space: LabelSpace, records: int = 6) -> RecordLosses:
    adapter = Adapter(base, rank=4, alpha=8)
    rng = np.random.default_rng(0)
    adapter.load(rng.normal(0, 0.05, adapter.dimension).astype(np.float32))
    torch.manual_seed(0)
    features = torch.randn(records, 16, 128)
    if space.multi:
        labels = (rng.random((records, len(space.labels))) < 0.2).astype(np.float32)
    else:
        labels = np.eye(len(space.labels), dtype=np.float32)[rng.integers(7, size=records)]
    return RecordLosses(LabelScorer(adapter, space, "Which?"), features, labels)


@pytest.mark.parametrize("space", [EMOTIC, BASIC], ids=lambda s: s.name)
def test_a_record_does_not_feel_its_neighbours(base: Base, space: LabelSpace) -> None:
    held = learner(base, space)
    with torch.no_grad():
        together = held.losses([0, 1, 2, 3])
        alone = torch.cat([held.losses([i]) for i in range(4)])
        others = held.losses([0, 5, 4, 3])
    assert together.shape == (4,)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together[[0, 3]], others[[0, 3]], atol=1e-5)
    assert not torch.allclose(together[1:3], others[1:3], atol=1e-3)


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_clipped_sums_on_the_quantised_model_equal_batches_of_one(
    base: Base, engine: str, clipping_error: Callable[[RecordLosses, str], float]
) -> None:
    assert clipping_error(learner(base, EMOTIC), engine) < 1e-5


def test_single_label_scores_are_log_probabilities(base: Base) -> None:
    held = learner(base, BASIC)
    scores = held.scorer.all(torch.randn(5, 16, 128))
    assert np.allclose(np.exp(scores).sum(1), 1, atol=1e-5)


def test_scores_in_batches_equal_scores_at_once(base: Base) -> None:
    held = learner(base, EMOTIC)
    features = torch.randn(7, 16, 128)
    whole = held.scorer.all(features, batch=7)
    assert np.allclose(whole, held.scorer.all(features, batch=3), atol=1e-4)


def test_cached_features_are_what_the_model_would_see(tiny: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny), quantization="nf4", form=PromptForm(end_answers=False))
    corpus = synthetic_corpus("test", 5, cache=tmp_path)
    features = vision_features(base, corpus, SilentReporter())[:]
    assert features.shape == (5, 16, 128)
    text = base.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}],
        add_generation_prompt=True,
    )
    inputs = base.processor(text=[text], images=[[corpus.image(2)]], do_image_splitting=False, return_tensors="pt")
    prompt, _ = base.prompter.batch(["Which?"])
    assert torch.equal(inputs["input_ids"], prompt)  # our prompt is the processor's, token by token
    with torch.no_grad():
        whole = base.model(**inputs).logits[0, -1].log_softmax(-1)
    scorer = LabelScorer(Adapter(base, rank=2, alpha=2), BASIC, "Which?")
    ids = [base.prompter.ids(f" {label}")[0] for label in BASIC.labels]
    expected = whole[ids].log_softmax(-1).numpy()
    assert np.allclose(scorer.all(features[2:3])[0], expected, atol=1e-4)
