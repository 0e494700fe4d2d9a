"""A fresh adapter on top of a frozen one, and both saved as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from carefl_secure.data.records import BASIC
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter, StackedAdapter
from carefl_secure.model.saved import load_saved
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum


def fresh(tiny: Path, rank: int = 2, alpha: int = 4, seed: int = 0, train: str = "B") -> Adapter:
    base = load_base(str(tiny), quantization="nf4")
    return Adapter(base, rank=rank, alpha=alpha, targets=("q", "down"), train=train, seed=seed)


def noise(adapter: Adapter, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.3, adapter.dimension)
    return values.astype(np.float32)


def features(adapter: Adapter, records: int = 3) -> torch.Tensor:
    tokens = adapter.base.processor.image_seq_len
    width = adapter.base.model.config.text_config.hidden_size
    drawn = torch.randn(records, tokens, width, generator=torch.Generator().manual_seed(0))
    return drawn.to(adapter.base.dtype)


def scores(adapter: Adapter) -> np.ndarray:
    return LabelScorer(adapter, BASIC, "Which expression?").all(features(adapter))


@pytest.mark.parametrize("train", ["B", "both"])
def test_the_stack_scores_as_frozen_and_fresh_together(tiny: Path, tmp_path: Path, train: str) -> None:
    first = fresh(tiny, train=train)
    one = noise(first, 1)
    first.load(one)
    alone = scores(first)
    stacked = StackedAdapter(first, seed=7)
    # a fresh B is zero: until it moves, the model is that of the first stage
    np.testing.assert_allclose(scores(stacked), alone, atol=1e-6)
    stacked.load(noise(stacked, 2) if train == "B" else stacked.vector() + noise(stacked, 2))
    both = scores(stacked)
    assert np.abs(both - alone).max() > 1e-2
    stacked.save(tmp_path)

    whole = fresh(tiny, rank=4, alpha=8, seed=3, train=train)
    load_saved(whole, tmp_path)
    np.testing.assert_allclose(scores(whole), both, atol=1e-5)

    base = load_base(str(tiny), quantization="nf4")
    anew = fresh(tiny)  # lends its shell; the module below knows nothing of this package
    anew.module = PeftModel.from_pretrained(base.model, str(tmp_path))
    anew.base = base
    np.testing.assert_allclose(scores(anew), both, atol=1e-5)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (4, 8)


def test_only_the_fresh_one_trains_and_spans_something_new(tiny: Path) -> None:
    first = fresh(tiny)
    first.load(noise(first, 1))
    before = {n: p.detach().clone() for n, p in first.module.named_parameters() if "lora" in n}
    stacked = StackedAdapter(first, seed=7)
    assert stacked.dimension == first.dimension
    assert not stacked.vector().any()
    stacked.active(1)
    trained = {n for n, p in stacked.module.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in stacked.parameters}
    assert all(".stage2." in n and "lora_B" in n for n in trained)
    stacked.load(noise(stacked, 2))
    now = dict(stacked.module.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.items())
    for name in before:
        if "lora_A" in name:
            assert not torch.equal(now[name], now[name.replace(".default.", ".stage2.")])
    third = StackedAdapter(stacked, seed=9)
    assert third.names == ["default", "stage2", "stage3"]
    assert all(".stage3." in name for name, _ in third.parameters)


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_gradients_of_the_fresh_one_are_clipped_per_record(tiny: Path, engine: str) -> None:
    first = fresh(tiny)
    first.load(noise(first, 1))
    stacked = StackedAdapter(first, seed=7)
    stacked.load(noise(stacked, 2))
    scorer = LabelScorer(stacked, BASIC, "Which expression?")
    learner = RecordLosses(scorer, features(stacked), np.eye(7, dtype=np.float32)[:3])
    stacked.module.train()

    def total(indices: list[int]) -> np.ndarray:
        return clipped_sum(
            stacked.module,
            stacked.active(1),
            learner.losses,
            np.array(indices),
            Clipping(1e-3, False, engine=engine, micro_batch=2),
        ).vector

    parts = [total([i]) for i in range(3)]
    assert all(0.99e-3 < np.linalg.norm(part) <= 1e-3 * (1 + 1e-6) for part in parts)
    np.testing.assert_allclose(total([0, 1, 2]), sum(parts), atol=1e-7)
