"""A random model of the embedded shape and a tiny experiment on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from carefl_secure.config.experiment import Experiment
from carefl_secure.model.embedded import build_model, build_processor


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sections of a base that costs next to nothing."""
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor()
    model = build_model(processor, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # a random model is nearly constant; this one has opinions
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {
        "data": {"records": 120, "cache_dir": str(tmp_path_factory.mktemp("corpora"))},
        "model": {"base": str(folder), "quantization": "none"},
        "adapter": {"rank": 2, "last_layers": 1},
        "privacy": {"unit": "none", "delta": 0.001, "sample_rate": 0.3},
        "federation": {"clients": 3, "rounds": 2},
        "simulation": {"dropout": 0.0},
        "performance": {"micro_batch": 64},
        "evaluation": {"every": 100, "baselines": False},
    }


@pytest.fixture
def make(settings: dict[str, Any]) -> Any:
    """Return a maker of experiments: ``make(cells, seeds=(0,), base={...})``."""

    def build(cells: list[dict[str, Any]], seeds: tuple[int, ...] = (0,), **more: Any) -> Experiment:
        base = {name: {**held} for name, held in settings.items()}
        for section, values in more.pop("base", {}).items():
            base.setdefault(section, {}).update(values)
        fields = {"name": "tiny", "question": "Which?", "replicates": 50, **more}
        return Experiment.model_validate({**fields, "base": base, "seeds": seeds, "cells": cells})

    return build


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where cells go."""
    return tmp_path / "out"
