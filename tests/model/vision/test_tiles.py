"""Images cut into tiles: the grid, the features, and the scores are those of the processor and the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carefl_secure.data.records import BASIC, Record
from carefl_secure.errors import ConfigError
from carefl_secure.model.embedded import build_processor
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import PromptForm
from carefl_secure.model.vision.encode import encode_images, vision_features
from carefl_secure.model.vision.tiles import Tiles, cut_images, image_cost, tile_grid
from carefl_secure.progress import SilentReporter

SIZES = ((64, 64), (200, 90), (90, 200), (300, 290))
PROCESSOR = build_processor()


class Pictures:
    """Noise of several shapes."""

    name, space = "pictures", BASIC

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]
        self.records = [Record(str(i), (i,)) for i in range(len(SIZES))]

    def image(self, index: int) -> Image.Image:
        return self.images[index]


@given(st.integers(1, 700), st.integers(1, 700), st.integers(33, 384))
def test_the_grid_is_the_processors(width: int, height: int, edge: int) -> None:
    cut_images(PROCESSOR, PromptForm(image_splitting=True, longest_edge=edge))
    inputs = PROCESSOR.image_processor([[Image.new("RGB", (width, height), "red")]], return_row_col_info=True)
    assert tile_grid(PROCESSOR, (width, height)) == (inputs["rows"][0][0], inputs["cols"][0][0])


def test_scores_of_cut_images_are_those_of_the_whole_model(tiny: Path, tmp_path: Path) -> None:
    form = PromptForm(image_splitting=True, longest_edge=192)
    base = load_base(str(tiny), quantization="none", compute_dtype="float32", form=form, feature_cache=tmp_path / "a")
    pictures = Pictures()
    held = vision_features(base, pictures, SilentReporter())
    again = vision_features(base, pictures, SilentReporter())[:]  # from disk
    assert isinstance(again, Tiles) and len(set(again.grids)) > 1
    assert torch.equal(held[:].tiles, again.tiles)
    some = held.select(np.array([3, 1]))
    assert torch.equal(some[np.array([1])].tiles, held[1:2].tiles)
    made = encode_images(base, pictures.images)
    assert torch.equal(made[0:2].tiles, held[:2].tiles) and made[2:].grids == held[2:].grids
    adapter = Adapter(base, rank=2, alpha=4)
    adapter.load(np.random.default_rng(1).normal(0, 0.2, adapter.dimension).astype(np.float32))
    scorer = LabelScorer(adapter, BASIC, "Which?")
    found = scorer.all(held, batch=3)
    (text,) = [base.prompter._head + "Which?" + base.prompter._turn]
    for i, image in enumerate(pictures.images):  # one label after the other, from the pixels
        likely = []
        inputs = base.processor(text=[text], images=[[image]], return_tensors="pt")
        ids = inputs.pop("input_ids")
        del inputs["attention_mask"]
        for row in base.prompter.answers(BASIC.labels, reference=False):
            tail = torch.tensor(row)
            with torch.no_grad():
                logits = adapter.module(input_ids=torch.cat([ids, tail[None]], 1), **inputs).logits[
                    0, ids.shape[1] - 1 : -1
                ]
            likely.append(logits.log_softmax(-1).gather(1, tail[:, None]).sum())
        assert np.allclose(found[i], torch.stack(likely).log_softmax(-1).numpy(), atol=1e-4)
    losses = RecordLosses(scorer, held, np.eye(7, dtype=np.float32)[:4])
    alone = torch.cat([losses.losses([i]) for i in (2, 0, 3)])
    assert torch.allclose(losses.losses([2, 0, 3]), alone, atol=1e-5)
    written = TextScorer(scorer)
    assert written._written(held[:2], ["", ""]) == [written._written(held[i : i + 1], [""])[0] for i in range(2)]
    assert torch.equal(held[:].whole()[0], held[:1].tiles[-1])
    assert "10 tiles of 16 tokens" in image_cost(base.processor, base.prompter)


def test_more_tiles_than_the_checkpoint_names_are_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="384"):
        load_base(str(tiny), quantization="none", form=PromptForm(image_splitting=True, longest_edge=448))
    base = load_base(str(tiny), quantization="none")
    assert "one tile of 16 tokens" in image_cost(base.processor, base.prompter)
