"""States of the frozen language model: what they are, where they are kept, and a head that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from carefl_secure.captions.prompts import framed
from carefl_secure.data.records import BASIC
from carefl_secure.errors import ModelError
from carefl_secure.model.label_head import HEAD_FILE, HEAD_SETTINGS
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.saved import load_saved
from carefl_secure.model.text_states import TextStates
from carefl_secure.model.vision.shards import list_encoders

SAID = ["a park at noon", "", "a very crowded " * 9, "rain", "a gift, arms raised", "dim"]
QUESTION = "Which?"


def features(records: int = 6, seed: int = 0) -> Tensor:
    """Return random image tokens of the embedded shape."""
    return torch.randn(records, 16, 128, generator=torch.Generator().manual_seed(seed))


def reading(folder: Path, cache: Path | None = None, reads: str = "text") -> LabelScorer:
    """Return a scorer with a tuned adapter and a head whose every value is moved away from its start."""
    base = load_base(str(folder), quantization="none", feature_cache=cache)
    adapter = Adapter(base, rank=2, alpha=4, targets=("q", "v"))
    adapter.attach_head(BASIC.labels, reads=reads, multi=False)
    rng = np.random.default_rng(0)
    adapter.load((adapter.vector() + rng.normal(0, 0.05, adapter.dimension)).astype(np.float32))
    return LabelScorer(adapter, BASIC, QUESTION)


def learner(scorer: LabelScorer, said: list[str]) -> RecordLosses:
    return RecordLosses(scorer, features(), np.eye(7, dtype=np.float32)[:6], said)


def test_a_state_is_the_mean_of_the_frozen_models_last_hidden_states(tiny: Path) -> None:
    scorer = reading(tiny)
    found = scorer.states(features(), SAID)
    plain = load_base(str(tiny), quantization="none")
    for place, said in enumerate(SAID):
        ids, attention = plain.prompter.batch([framed(said, QUESTION)])
        seen = BaseModelOutputWithPooling(pooler_output=features()[place : place + 1])
        with torch.no_grad():
            out = plain.model.model(
                input_ids=ids, attention_mask=attention, mm_encoder_outputs={"image": seen}, output_hidden_states=True
            )
        assert torch.allclose(found[place, 0], out.hidden_states[-1][0].mean(0), atol=1e-5)
    assert torch.pdist(found[:, 0]).min() > 0.01
    # the adapter is used again after that
    assert not torch.allclose(scorer(features(), SAID), reading_untuned(tiny)(features(), SAID), atol=1e-3)


def reading_untuned(folder: Path) -> LabelScorer:
    base = load_base(str(folder), quantization="none")
    return LabelScorer(Adapter(base, rank=2, alpha=4, targets=("q", "v")), BASIC, QUESTION)


def test_a_row_follows_its_own_record_alone(tiny: Path) -> None:
    scorer = reading(tiny)
    held, other = learner(scorer, SAID), learner(scorer, [SAID[0], "a gift", *SAID[2:]])
    with torch.no_grad():
        alone = torch.cat([held.losses([i]) for i in range(6)])
        together, changed = held.losses(range(6)), other.losses(range(6))
    assert torch.allclose(together, alone, atol=1e-4)
    rest = [0, 2, 3, 4, 5]
    assert torch.allclose(together[rest], changed[rest], atol=1e-5)
    # In bfloat16, where padding changes rounding, what the head reads of a record is the same to the last bit.
    base = load_base(str(tiny), quantization="none", compute_dtype="bfloat16")
    rounded = TextStates(Adapter(base, rank=2, alpha=4, targets=("q", "v")), QUESTION)
    seen = features().bfloat16()
    alone = torch.cat([rounded(seen[i : i + 1], SAID[i : i + 1]) for i in range(6)])
    assert torch.equal(rounded(seen, SAID), alone)
    assert abs(float(together[1] - changed[1])) > 1e-3


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_clipped_sums_equal_batches_of_one(
    tiny: Path, engine: str, clipping_error: Callable[[RecordLosses, str], float]
) -> None:
    scorer = reading(tiny)
    scorer.adapter.parameters = scorer.adapter.active(1)  # what does not train has no gradient
    assert clipping_error(learner(scorer, SAID), engine) < 1e-5


def test_states_are_made_once_and_kept_for_their_owner(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    read = TextStates._read

    def counted(self: TextStates, tiles: Tensor, tokens: Tensor) -> Tensor:
        made.append(len(tiles))
        return read(self, tiles, tokens)

    monkeypatch.setattr(TextStates, "_read", counted)
    first = reading(tiny, tmp_path / "cache")
    scores = first.all(features(), captions=SAID)
    learner(first, SAID).losses(range(6))
    assert made == [1] * 6  # each record by itself
    again = reading(tiny, tmp_path / "cache")
    assert np.array_equal(again.all(features(), captions=SAID), scores) and len(made) == 6
    again.all(features(), captions=[*SAID[:5], "bright"])  # another caption is another record
    assert len(made) == 7
    (found,) = list_encoders(tmp_path / "cache")
    assert found.images == 7 and "states of texts" in found.base
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o77 == 0
        assert path.is_dir() or b"park" not in path.read_bytes()


def test_an_attack_that_searches_for_features_is_not_blinded(tiny: Path) -> None:
    """The head's gradient by one record depends on its features, through the language model, also to second order."""
    scorer = reading(tiny)
    weight = scorer.adapter.active(1)[-1][1]
    assert scorer.adapter.head is not None and scorer.adapter.active(1)[-1][0].startswith("label_head")
    seen = features(1).requires_grad_()
    held = RecordLosses(scorer, seen, np.eye(7, dtype=np.float32)[:1], SAID[:1])
    with sdpa_kernel(SDPBackend.MATH):
        (made,) = torch.autograd.grad(held.losses([0]).sum(), [weight], create_graph=True)
        (found,) = torch.autograd.grad(made.square().sum(), [seen])
    assert found.abs().max() > 1e-6
    plain = RecordLosses(scorer, seen.detach(), np.eye(7, dtype=np.float32)[:1], SAID[:1])
    (same,) = torch.autograd.grad(plain.losses([0]).sum(), [weight])
    assert torch.allclose(same, made, atol=1e-5)
    assert len(scorer.adapter.base.states._index) == 1  # nothing is kept of what was searched


def test_a_saved_head_states_what_it_reads(tiny: Path, tmp_path: Path) -> None:
    scorer = reading(tiny)
    scorer.adapter.save(tmp_path)
    about = json.loads((tmp_path / HEAD_SETTINGS).read_text())
    del about["sha256"]  # a change on purpose
    assert about["reads"] == "text"
    fresh = reading(tiny, reads="image")
    load_saved(fresh.adapter, tmp_path)
    assert np.allclose(fresh.all(features(), captions=SAID), scorer.all(features(), captions=SAID), atol=1e-6)
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps({**about, "reads": "image"}))
    with pytest.raises(ModelError, match="another base"):
        load_saved(fresh.adapter, tmp_path)
    # heads of earlier versions, which read images and do not say so, also those of runs with captions
    old = reading(tiny, reads="image")
    old.adapter.save(tmp_path)
    settings = {
        k: v for k, v in json.loads((tmp_path / HEAD_SETTINGS).read_text()).items() if k not in ("reads", "sha256")
    }
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps(settings))
    load_saved(scorer.adapter, tmp_path)
    assert scorer.adapter.head is not None and scorer.adapter.head.reads == "image"
    assert np.allclose(scorer.all(features(), captions=SAID), old.all(features(), captions=SAID), atol=1e-6)
    assert (tmp_path / HEAD_FILE).is_file()


def test_channels_of_any_size_count_alike(tiny: Path) -> None:
    head = reading(tiny).adapter.head
    assert head is not None
    seen = torch.randn(40, 1, 128)
    head.fit(seen)
    large = seen * torch.logspace(-2, 3, 128)
    before = head.inputs(seen)
    head.fit(large + 5)
    # the norm leaves a common factor out
    assert torch.nn.functional.cosine_similarity(head.inputs(large + 5), before, dim=1).min() > 0.9
    assert torch.allclose(before.norm(dim=1), head.inputs(3 * seen).norm(dim=1), rtol=1e-4)
