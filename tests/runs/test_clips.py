"""A run on clips: what it reads, says, trains and scores, and what it is refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.audit.audited_run import AuditedRun
from carefl_secure.config import Config
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.saved_model.predict import TrainedModel
from carefl_secure.runs.train import train
from tests.support.tracking import Watching

CLASSES = ("Fearfully-Surprised", "Happily-Surprised")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C-EXPR-DB with 40 videos of one clip, three frames each."""
    root, rng, lines = tmp_path_factory.mktemp("clips") / "C-EXPR-DB", np.random.default_rng(0), []
    for video in range(40):
        clip = f"{video:02d}_{CLASSES[video % 2]}_0"
        lines.append(f"{CLASSES[video % 2]}/{clip},{video % 2},")
        for frame in range(3):
            path = root / "frames" / clip / f"{frame:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    (root / "folds" / "split-0").mkdir(parents=True)
    (root / "folds" / "split-0" / "train.txt").write_text("\n".join(lines))
    return root


def settings(source: object, folder: Path, **model: Any) -> Config:
    return Config.model_validate(
        {
            "data": {"source": str(source)},
            "model": {"frames": 2, "quantization": "none", "feature_cache": None, **model},
            "federation": {"clients": 4, "rounds": 2, "min_survivors": 3},
            "privacy": {"sample_rate": 0.5, "delta": 0.01},
            "evaluation": {"baselines": False},
            "run": {"dir": str(folder), "name": "clips"},
        }
    )


def test_a_run_on_clips_trains_and_is_scored(corpus: Path, tmp_path: Path) -> None:
    reporter = Watching()
    summary = train(settings(corpus, tmp_path), reporter)
    assert any("a record is a clip of up to 2 frames" in note for note in reporter.notes)
    assert any("up to 2 frames of 16 tokens, 32 in all" in note for note in reporter.notes)
    assert any(note.startswith("28 private records at 4 clients") for note in reporter.notes)
    found = evaluate(summary.folder, SilentReporter()).evaluation
    assert found.figures["mAP"] == pytest.approx(summary.after["mAP"], abs=1e-6)
    assert found.cost is not None and found.cost.image_tokens == 32
    with pytest.raises(ConfigError, match="clips"):
        TrainedModel(summary.folder)
    with pytest.raises(RunError, match="frames"):
        AuditedRun(summary.folder, SilentReporter())


def test_single_frames_are_not_left_out_of_clips(corpus: Path, tmp_path: Path) -> None:
    """Which frames a clip holds must not depend on another record."""
    asked = settings(corpus, tmp_path).model_dump()
    with pytest.raises(ValueError, match=r"data\.deduplicate=drop"):
        Config.model_validate({**asked, "data": {**asked["data"], "deduplicate": "drop"}})


@pytest.mark.parametrize(
    ("source", "model"), [("synthetic", {}), ("x", {"image_splitting": True}), ("x", {"context": "constant"})]
)
def test_clips_are_refused_where_they_have_no_meaning(source: str, model: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.frames above 1"):
        settings(source, tmp_path, **model)
