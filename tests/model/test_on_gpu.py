"""The same step, scores and run on a GPU as on the CPU. `make test-gpu` runs these, and needs a CUDA device.

``CAREFL_TEST_DEVICE`` names another device, such as ``cuda:1``; ``cpu`` tries the tests themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carefl_secure.config import load_config
from carefl_secure.data.records import EMOTIC
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.vision.encode import encode_images
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.train import train

DEVICE = os.environ.get("CAREFL_TEST_DEVICE", "cuda")
ABSENT = DEVICE.startswith("cuda") and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ABSENT, reason="there is no CUDA device")]
COUNT = 6


def scorer(device: str, quantization: str, dtype: str = "float32") -> LabelScorer:
    base = load_base(quantization=quantization, compute_dtype=dtype, device=device, parallel_batches=1)
    adapter = Adapter(base, rank=4, alpha=8, train="both", head=EMOTIC.labels)
    draw = np.random.default_rng(0)
    adapter.load(draw.normal(0.0, 0.02, adapter.dimension).astype(np.float32))
    return LabelScorer(adapter, EMOTIC, QUESTIONS["emotic"])


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(1)
    return [Image.fromarray(draw.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(COUNT)]


def features(scorer: LabelScorer) -> torch.Tensor:
    found = encode_images(scorer.adapter.base, pictures())
    assert isinstance(found, torch.Tensor)
    return found


def summed(scorer: LabelScorer, given: torch.Tensor, engine: str) -> np.ndarray:
    held = (np.random.default_rng(2).random((COUNT, len(EMOTIC.labels))) < 0.2).astype(np.float32)
    learner, adapter = RecordLosses(scorer, given, held), scorer.adapter
    adapter.module.train()
    clipping = Clipping(1.0, False, engine=engine, micro_batch=4)  # type: ignore[arg-type]
    return clipped_sum(adapter.module, adapter.active(1), learner.losses, np.arange(COUNT), clipping).vector


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_features_scores_and_clipped_sums_are_those_of_the_cpu(quantization: str) -> None:
    here, there = scorer("cpu", quantization), scorer(DEVICE, quantization)
    assert next(there.adapter.module.parameters()).device.type == torch.device(DEVICE).type
    given = features(here)
    assert torch.allclose(features(there), given, atol=1e-3)
    assert np.allclose(there.all(given), here.all(given), atol=1e-2)
    expected = summed(here, given, "native")
    for engine in ("native", "opacus"):
        found = summed(there, given, engine)
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected), engine


def test_bfloat16_is_near() -> None:
    here, there = scorer("cpu", "nf4"), scorer(DEVICE, "nf4", "bfloat16")
    given = features(here)
    found, expected = there.all(given), here.all(given)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_an_answer_is_generated() -> None:
    there = scorer(DEVICE, "nf4")
    assert TextScorer(there).all(features(there)).decisions.shape == (COUNT, len(EMOTIC.labels))


def test_a_run_trains_there_and_is_scored_on_the_cpu(tmp_path: Path) -> None:
    words = ["data.records=160", "federation.rounds=2", "federation.clients=4", "simulation.dropout=0"]
    words += ["privacy.delta=0.001", f"run.dir={tmp_path}", f"model.device={DEVICE}", "evaluation.baselines=false"]
    summary = train(load_config(None, words), SilentReporter())
    assert len(summary.rows) == 2
    assert 0 < float(summary.rows[0]["epsilon"]) < float(summary.rows[1]["epsilon"]) <= 8
    settings = summary.folder / "config.yaml"
    settings.write_text(settings.read_text().replace(f"device: {DEVICE}", "device: cpu"))
    again = evaluate(summary.folder, SilentReporter()).evaluation
    assert again.figures["mAP"] == pytest.approx(summary.after["mAP"], abs=0.02)
