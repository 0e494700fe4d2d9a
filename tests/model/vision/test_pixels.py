"""LoRA on the connector and the vision tower: gradients per record, no stored features, and a run that trains it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carefl_secure.config import load_config
from carefl_secure.data.records import EMOTIC
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import PromptForm
from carefl_secure.model.vision.encode import frozen_features, record_features
from carefl_secure.model.vision.pixels import PixelFeatures, Pixels, pixels_of
from carefl_secure.privacy.clipping.clipped_sum import Clipping, Engine, clipped_sum
from carefl_secure.progress import SILENT, SilentReporter
from carefl_secure.runs.saved_model.predict import TrainedModel
from carefl_secure.runs.train import train

COUNT = 4


def scorer(targets: tuple[str, ...], form: PromptForm | None = None) -> LabelScorer:
    base = load_base(quantization="none", parallel_batches=1, form=form)
    adapter = Adapter(base, rank=2, alpha=4, targets=targets, head=EMOTIC.labels)
    return LabelScorer(adapter, EMOTIC, "Which?")


def shaken(found: LabelScorer) -> np.ndarray:
    """Move the adapter away from its start, where B is zero."""
    vector = np.random.default_rng(0).normal(0.0, 0.05, found.adapter.dimension).astype(np.float32)
    found.adapter.load(vector)
    return vector


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PixelFeatures:
    made = synthetic_corpus("test", 12, cache=tmp_path_factory.mktemp("drawn"))
    return PixelFeatures(load_base(quantization="none"), made)


@pytest.mark.parametrize("engine", ["native", "opacus"])
@pytest.mark.parametrize("targets", [("connector",), ("q", "vision", "connector")])
def test_a_clipped_sum_is_that_of_one_record_at_a_time(
    corpus: PixelFeatures, targets: tuple[str, ...], engine: Engine
) -> None:
    found = scorer(targets)
    shaken(found)
    seen = record_features(found.adapter, corpus.corpus, SILENT)
    assert isinstance(seen, PixelFeatures)
    held = (np.random.default_rng(1).random((len(seen), len(EMOTIC.labels))) < 0.2).astype(np.float32)
    losses = RecordLosses(found, seen, held)
    trained = found.adapter.active(1)
    assert any("connector" in name for name, _ in trained)
    assert any("vision_model" in name for name, _ in trained) == ("vision" in targets)
    weights = [weight for _, weight in trained]
    expected = np.zeros(sum(weight.numel() for weight in weights))
    found.adapter.module.train()
    for i in range(COUNT):
        parts = torch.autograd.grad(losses.losses(np.array([i])).sum(), weights)
        gradient = torch.cat([part.flatten() for part in parts]).double().numpy()
        expected += gradient / (np.linalg.norm(gradient) + 0.01)
    clipping = Clipping(1.0, True, engine=engine, micro_batch=3)
    total = clipped_sum(found.adapter.module, trained, losses.losses, np.arange(COUNT), clipping).vector
    assert np.linalg.norm(total - expected) < 1e-4 * np.linalg.norm(expected)


def test_frozen_features_are_the_untuned_ones_and_nothing_else_enters_the_store(corpus: PixelFeatures) -> None:
    found = scorer(("connector", "vision"))
    before = found.adapter.base.features
    untouched = frozen_features(found.adapter, corpus.corpus, SILENT)
    shaken(found)
    images = [corpus.corpus.image(i) for i in range(len(corpus))]
    tuned = pixels_of(found.adapter.base, images).encoded(found.adapter.base)
    assert not torch.allclose(tuned, untouched, atol=1e-3)
    again = scorer(("connector", "vision"))
    shaken(again)
    assert torch.allclose(frozen_features(again.adapter, corpus.corpus, SILENT), untouched, atol=1e-5)
    assert [name for name, _ in again.adapter.active(1)] == [name for name, _ in found.adapter.active(1)]
    assert not any(p.requires_grad for name, p in again.adapter.module.named_parameters() if "lora_A" in name)
    stored = [record_features(scorer(("q",)).adapter, corpus.corpus, SILENT)[:], untouched]
    assert torch.equal(stored[0], stored[1])
    assert before is found.adapter.base.features


def test_scores_follow_the_trained_vision_side(corpus: PixelFeatures) -> None:
    found = scorer(("connector",))
    whole: Pixels = corpus[:]
    before = found(whole)
    shaken(found)
    assert not torch.allclose(found(whole), before, atol=1e-2)
    assert torch.allclose(found(whole)[2:5], found(corpus[np.arange(2, 5)]), atol=1e-4)


def test_tiles_are_refused(corpus: PixelFeatures) -> None:
    split = load_base(quantization="none", form=PromptForm(image_splitting=True, longest_edge=128))
    with pytest.raises(ConfigError, match=r"adapter\.targets"):
        PixelFeatures(split, corpus.corpus)


def test_a_run_trains_the_connector_and_its_model_is_used(tmp_path: Path) -> None:
    words = ["data.records=160", "federation.rounds=2", "federation.clients=4", "simulation.dropout=0"]
    words += ["privacy.delta=0.001", f"run.dir={tmp_path}", "adapter.targets=[q, connector]", "adapter.rank=2"]
    summary = train(load_config(None, [*words, f"model.feature_cache={tmp_path / 'cache'}"]), SilentReporter())
    assert 0 < float(summary.rows[-1]["epsilon"]) <= 8
    model = TrainedModel(summary.folder)
    names = [name for name, _ in model.scorer.adapter.parameters]
    moved = dict(model.scorer.adapter.module.named_parameters())
    assert any("connector" in name and moved[name].abs().sum() > 0 for name in names if "lora_B" in name)
    pictures = [Image.effect_noise((64, 64), 60.0 + i).convert("RGB") for i in range(3)]
    expected = model.scorer(pixels_of(model.scorer.adapter.base, pictures)).detach().numpy()
    assert np.allclose(model.scores(pictures), expected, atol=1e-4)
    from carefl_secure.audit.audited_run import AuditedRun

    with pytest.raises(RunError, match="vision side"):
        AuditedRun(summary.folder, SILENT)
