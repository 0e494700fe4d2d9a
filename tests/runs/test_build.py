"""What a configuration makes of the model: settings of time and memory change no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carefl_secure.config import load_config
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import ConfigError
from carefl_secure.model.label_scorer import RecordLosses
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.runs.build import evaluation_batch, label_scorer


def test_checkpointing_recomputes_each_layer_and_changes_no_sum() -> None:
    found, runs = [], []
    features = torch.randn(6, 16, 128, generator=torch.Generator().manual_seed(0))
    held = (np.random.default_rng(0).random((6, len(EMOTIC.labels))) < 0.2).astype(np.float32)
    for words in ([], ["performance.gradient_checkpointing=true"]):
        scorer = label_scorer(load_config(None, ["performance.parallel_batches=2", *words]), EMOTIC)
        module = scorer.adapter.module.train()
        layer = module.get_submodule("base_model.model.model.text_model.layers.0.mlp")
        counted: list[int] = []
        layer.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        losses = RecordLosses(scorer, features, held).losses
        parallel = scorer.adapter.base.parallel_batches
        found.append(
            clipped_sum(
                module,
                scorer.adapter.active(1),
                losses,
                np.arange(6),
                Clipping(1.0, True, micro_batch=3),
                parallel_batches=parallel,
            ).vector
        )
        runs.append(len(counted))
    assert runs == [2, 4]
    assert np.linalg.norm(found[1] - found[0]) <= 1e-5 * np.linalg.norm(found[0])


def test_checkpointing_is_refused_where_opacus_splits_gradients() -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing.*privacy\.clipping=native"):
        load_config(None, ["performance.gradient_checkpointing=true", "privacy.clipping=opacus"])


@pytest.mark.parametrize(
    ("words", "batch"),
    [([], 64), (["model.base=some/model"], 16), (["performance.evaluation_batch=5", "model.base=some/model"], 5)],
)
def test_a_large_model_scores_fewer_images_at_once(words: list[str], batch: int) -> None:
    assert evaluation_batch(load_config(None, words)) == batch
