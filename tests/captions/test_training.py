"""Captions in the prompt: what they change, what they leave alone, and whole runs with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from carefl_secure.captions.captioner import load_captioner
from carefl_secure.captions.run import caption_all, caption_corpus, open_cache
from carefl_secure.config import Config, load_config
from carefl_secure.data.records import BASIC, EMOTIC, LabelSpace, targets
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.figures import Figures
from carefl_secure.evaluation.groups import Settings
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.text_states import TextStates
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import SilentReporter
from carefl_secure.runs import build
from carefl_secure.runs.build import fit_head, label_scorer
from carefl_secure.runs.captions import caption_parts, load_contexts
from carefl_secure.runs.client_task import model_tasks
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.runs.train import train

SMALL = ["data.records=240", "model.quantization=none"]


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.words: list[str] = []

    def note(self, text: str) -> None:
        self.words.append(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        self.words.append(str(row))


@pytest.fixture(scope="module")
def scorer() -> LabelScorer:
    adapter = Adapter(load_base("embedded", quantization="none"), rank=2, alpha=4)
    rng = np.random.default_rng(0)
    adapter.load(rng.normal(0, 0.02, adapter.dimension).astype(np.float32))
    return LabelScorer(adapter, EMOTIC, QUESTIONS["emotic"])


@pytest.fixture(scope="module")
def corpora() -> Corpora:
    return load_corpora(load_config(None, SMALL), SilentReporter())


@pytest.fixture(scope="module")
def features(scorer: LabelScorer, corpora: Corpora) -> torch.Tensor:
    return vision_features(scorer.adapter.base, corpora.private, SilentReporter())[:]


def captions(corpora: Corpora, control: str, *more: str) -> list[str] | None:
    config = load_config(None, [*SMALL, f"model.context={control}", *more])
    made = load_contexts(config, corpora, SilentReporter())
    return None if made is None else made.private


def test_true_captions_help_and_foreign_ones_do_not(
    scorer: LabelScorer, corpora: Corpora, features: torch.Tensor
) -> None:
    scores = {
        control: scorer.all(features, captions=captions(corpora, control))
        for control in ("none", "own", "shuffled", "wrong", "constant")
    }
    names = list(scores)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(scores[first] - scores[second]).mean() > 0.05, (first, second)
    truth = targets(corpora.private)
    ap = {name: Figures(truth, found, multi=True, names=("mAP",))()["mAP"] for name, found in scores.items()}
    assert ap["own"] > max(ap["shuffled"], ap["wrong"], ap["constant"])


def test_without_captions_nothing_is_changed(scorer: LabelScorer, features: torch.Tensor) -> None:
    part = features[:20]
    bare = scorer.all(part)
    assert np.array_equal(bare, scorer.all(part, captions=None))
    assert np.array_equal(bare, scorer.all(part, captions=[""] * 20))


@pytest.mark.parametrize("space", [EMOTIC, BASIC], ids=lambda s: s.name)
def test_a_record_does_not_feel_the_captions_of_others(
    scorer: LabelScorer, features: torch.Tensor, space: LabelSpace
) -> None:
    """Left padding and masks: a long caption in a batch with a short one changes nothing."""
    asking = LabelScorer(scorer.adapter, space, QUESTIONS[space.name])
    truth = np.eye(6, len(space.labels), dtype=np.float32)
    said = ["park", "arms raised, hospital, trophy, dim", "", "a very " * 30, "beach", "fire"]
    held = RecordLosses(asking, features[:6], truth, said)
    other = RecordLosses(asking, features[:6], truth, [said[0], "gift", *said[2:]])
    with torch.no_grad():
        alone = torch.cat([held.losses([i]) for i in range(6)])
        together, changed = held.losses(range(6)), other.losses(range(6))
    assert torch.allclose(together, alone, atol=1e-4)
    rest = [0, 2, 3, 4, 5]
    assert torch.equal(together[rest], changed[rest])
    assert abs(float(together[1] - changed[1])) > 1e-3


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_clipped_sums_with_captions_equal_batches_of_one(
    scorer: LabelScorer,
    features: torch.Tensor,
    corpora: Corpora,
    engine: str,
    clipping_error: Callable[[RecordLosses, str], float],
) -> None:
    said = captions(corpora, "own", "model.context_dropout=0.4")
    assert said is not None
    held = RecordLosses(scorer, features[:6], targets(corpora.private)[:6], said[:6])
    assert clipping_error(held, engine) < 1e-5


def test_captions_must_fit_the_records(scorer: LabelScorer, features: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        scorer.all(features[:3], captions=["x"])
    with pytest.raises(ConfigError, match="do not fit"):
        RecordLosses(scorer, features[:3], np.zeros((3, 26), np.float32), ["x"] * 4)


def test_each_record_meets_its_own_caption_on_clients_and_server(
    scorer: LabelScorer, corpora: Corpora, features: torch.Tensor
) -> None:
    config = load_config(None, [*SMALL, "model.context=own"])
    contexts = load_contexts(config, corpora, SilentReporter())
    assert contexts is not None
    tasks = model_tasks(
        scorer, corpora, Clipping(1.0, True, engine="native", micro_batch=64), SilentReporter(), contexts=contexts
    )
    truth = targets(corpora.private)
    for task, share in zip(tasks[:3], corpora.shares, strict=False):
        at = share[:4].tolist()
        by_hand = RecordLosses(scorer, features[at], truth[at], [contexts.private[i] for i in at])
        with torch.no_grad():
            assert torch.equal(task.losses.losses(range(4)), by_hand.losses(range(4)))
    test = vision_features(scorer.adapter.base, corpora.test, SilentReporter())
    figures = Evaluator(scorer, corpora, 64, SilentReporter(), contexts)(scorer.adapter.vector())
    scores = scorer.all(test, 64, contexts.test)
    assert figures["mAP"] == Figures(targets(corpora.test), scores, multi=True, names=("mAP",))()["mAP"]
    bare = Evaluator(scorer, corpora, 64, SilentReporter())(scorer.adapter.vector())
    assert figures["mAP"] != bare["mAP"] and figures["macro_f1"] != bare["macro_f1"]


def test_a_removed_private_record_changes_no_other_caption(corpora: Corpora) -> None:
    fewer = Corpora(Subset(corpora.private, range(1, 240)), corpora.public, corpora.test, corpora.open, corpora.shares)
    for control in ("own", "shuffled", "wrong", "constant"):
        more = ["model.context_error=0.5"] if control != "constant" else []
        whole = captions(corpora, control, *more, "model.context_dropout=0.2")
        part = captions(fewer, control, *more, "model.context_dropout=0.2")
        assert whole is not None and part == whole[1:]


def test_errors_and_dropout_reach_the_captions(corpora: Corpora) -> None:
    clean = captions(corpora, "own")
    noisy = captions(corpora, "own", "model.context_error=1")
    left = captions(corpora, "own", "model.context_dropout=0.5")
    assert clean is not None and noisy is not None and left is not None
    assert np.mean([a != b for a, b in zip(clean, noisy, strict=True)]) > 0.9
    assert 0.3 < np.mean([not c for c in left]) < 0.7
    assert all(a == b for a, b in zip(clean, left, strict=True) if b)


def run(tmp_path: Path, *more: str) -> Config:
    quick = ["federation.rounds=1", "evaluation.baselines=false", "privacy.delta=0.001"]
    chosen = [*SMALL, *quick, "adapter.rank=2", f"run.dir={tmp_path}", *more]
    return load_config(None, list({word.partition("=")[0]: word for word in chosen}.values()))


def test_a_whole_run_with_the_describer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    few = ["data.records=64", "federation.clients=3", "simulation.dropout=0"]
    said = ["model.context=own", "model.context_error=0.1", "adapter.head=text"]
    summary = train(run(tmp_path, *few, *said), notes)
    assert any("no captioning model was run" in word and "0.1" in word for word in notes.words)
    assert any("0.0% of the public captions name an emotion" in word for word in notes.words)
    kept = yaml.safe_load((summary.folder / "config.yaml").read_text())["model"]
    assert (kept["context"], kept["context_error"]) == ("own", 0.1)
    assert any("only the label head is trained" in word for word in notes.words)
    lora = load_file(summary.folder / "adapter" / "adapter_model.safetensors")
    head = load_file(summary.folder / "adapter" / "label_head.safetensors")
    assert not any(value.any() for name, value in lora.items() if "lora_B" in name)
    assert head["linear.weight"].all() and head["scale"].std() > 0 and not head["share"]
    made: list[int] = []
    read = TextStates._read
    monkeypatch.setattr(TextStates, "_read", lambda self, *prompt: made.append(len(prompt[0])) or read(self, *prompt))
    found = evaluate(summary.folder, SilentReporter(), settings=Settings(replicates=20, minimum=10)).evaluation
    assert len(made) == 2 + 32  # the images that are timed; all other states are kept
    assert found.figures["mAP"] == pytest.approx(summary.after["mAP"], abs=1e-3)
    plain = train(run(tmp_path, *few), Notes())
    assert summary.before["mAP"] != plain.before["mAP"]


@pytest.mark.parametrize(
    ("word", "needs", "alone"),
    [("privacy.epsilon=8", 10.0, True), ("privacy.epsilon=8", 0.01, False), ("privacy.unit=none", 10.0, False)],
)
def test_noise_decides_whether_the_adapter_is_trained_as_well(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, needs: float, alone: bool
) -> None:
    monkeypatch.setattr(build, "ADAPTER_NEEDS", needs)
    config, notes = run(tmp_path, "model.context=own", "adapter.head=text", word), Notes()
    held = label_scorer(config, EMOTIC)
    fit_head(config, held, corpora, load_contexts(config, corpora, notes), notes)
    head, names = held.adapter.head, [name for name, _ in held.adapter.active(1)]
    assert head is not None and head.reads == "text" and head.alone == alone
    assert (len(names) == 1) == alone == any("only the label head" in word for word in notes.words)


def test_a_whole_run_on_captions_from_a_cache(smolvlm: Path, tmp_path: Path) -> None:
    config = run(tmp_path, "data.records=64", "federation.clients=3", "simulation.dropout=0")
    captioner = load_captioner(str(smolvlm), "What?", quantization="none", dtype="float32", max_new_tokens=3, batch=32)
    parts = caption_parts(config, SilentReporter())
    first = Subset(parts["private"], range(10))
    cache = open_cache(tmp_path / "captions", captioner, "full")
    caption_corpus(first, captioner, cache, "full", SilentReporter())
    more = ["data.records=64", "federation.clients=3", "simulation.dropout=0"]
    more += ["model.context=own", f"model.context_cache={tmp_path / 'captions'}"]
    with pytest.raises(DataError, match="54 of 64 records of synthetic/private"):
        train(run(tmp_path, *more), SilentReporter())
    caption_all(parts, captioner, tmp_path / "captions", "full", SilentReporter())
    notes = Notes()
    summary = train(run(tmp_path, *more), notes)
    assert np.isfinite(summary.after["mAP"])
    assert any("smolvlm" in word for word in notes.words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["model.context_dropout=0.1"], "context_dropout has no effect"),
        (["model.context_error=0.1"], "context_error"),
        (["model.context=constant", "model.context_error=0.1"], "context_error"),
        (["model.context=constant", "model.context_cache=c"], "context_cache has no effect"),
        (["model.context=own", "model.context_cache=c", "model.context_error=0.1"], "describer"),
        (["model.context=own", "data.source=photos"], "carefl-secure caption"),
        (["model.context=own", "model.context_dropout=1.1"], "context_dropout"),
        (["model.context=own", "model.context_error=-0.1"], "context_error"),
    ],
)
def test_settings_that_contradict_each_other(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(None, words)
