"""Small models of the real classes, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from carefl_secure.model.embedded import build_model, build_processor


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of the embedded shape, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    processor = build_processor()
    model = build_model(processor, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # a random model is nearly constant; this one has opinions
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
