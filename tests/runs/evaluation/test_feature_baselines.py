"""The logistic regressions on frozen features: one learns to convergence, the other pays what a run pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.config import load_config
from carefl_secure.data.records import Corpus, targets
from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.privacy.accounting.accountant import epsilon
from carefl_secure.privacy.accounting.events import SampledGaussian
from carefl_secure.progress import SILENT
from carefl_secure.runs.evaluation import evaluator
from carefl_secure.runs.evaluation.evaluator import feature_baselines

ROUNDS, RATE, NORM = 5, 0.25, 0.5
SETTINGS = [
    f"federation.rounds={ROUNDS}",
    f"privacy.sample_rate={RATE}",
    f"privacy.clipping_norm={NORM}",
    "privacy.delta=0.001",
    "data.records=240",
    "privacy.epsilon=6",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus, Corpus]:
    cache: Path = tmp_path_factory.mktemp("drawn")
    train, test = (synthetic_corpus(name, 240, cache=cache) for name in ("private", "test"))
    return train, test, Subset(test, tuple(range(64)))


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(load_base(quantization="none"), rank=2, alpha=4)


def test_both_learn_and_the_private_one_adds_the_noise_of_the_budget(
    parts: tuple[Corpus, Corpus, Corpus], adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, float]] = []
    original = evaluator.gaussian

    def seen(stream: Any, count: int, deviation: float) -> NDArray[np.float64]:
        drawn.append((count, deviation))
        return original(stream, count, deviation)

    monkeypatch.setattr(evaluator, "gaussian", seen)
    config = load_config(None, SETTINGS)
    found = feature_baselines(config, adapter, *parts, SILENT)
    chance = float(targets(parts[1]).mean())
    assert found["feature_logistic"] > chance + 0.1
    assert set(found) == {"feature_logistic", "feature_logistic_dp"}
    assert len(drawn) == ROUNDS
    assert len(set(drawn)) == 1
    count, deviation = drawn[0]
    assert count == len(parts[0].space.labels) * (16 * 128 + 1)
    event = SampledGaussian(sample_rate=RATE, noise_multiplier=deviation / NORM, count=ROUNDS)
    assert 5.9 < epsilon([event], 0.001) <= 6


def test_without_privacy_no_private_baseline_is_fitted(parts: tuple[Corpus, Corpus, Corpus], adapter: Adapter) -> None:
    config = load_config(None, ["privacy.unit=none", "federation.rounds=2"])
    assert set(feature_baselines(config, adapter, *parts, SILENT)) == {"feature_logistic"}
