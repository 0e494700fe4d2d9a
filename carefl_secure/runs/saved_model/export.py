"""One ordinary checkpoint in place of base and adapter: merged, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carefl_secure.errors import ModelError, RunError
from carefl_secure.model.saved import merge, save_merged
from carefl_secure.runs.saved_model.predict import TrainedModel
from carefl_secure.runs.saved_model.task import MERGED, write_task

TOLERANCE = 1e-3
"""How far merging may move a score, a log-probability or log-odds, in float32, before rounding."""

_GREYS = (64, 127, 192, 255)


def export_merged(run: Path, out: Path) -> float:
    """Merge a run's adapter into a whole float copy of its base, and write it in bfloat16.

    ``out``, which must not exist, is what ``from_pretrained`` and `TrainedModel` take. Returned is how far rounding to
    bfloat16 moves a score from that of the adapter on the whole base, on four grey images. Scores of a run whose base
    is quantised differ more, as the merged one is not. ModelError is raised where the adapter is missing or damaged,
    or merging moves a score by more than :data:`TOLERANCE`; RunError where ``out`` exists or cannot be written.
    """
    if out.exists():
        raise RunError(f"{out} exists already; name another folder with --out, or remove it")
    whole: dict[str, Any] = {"quantization": "none", "compute_dtype": "float32"}
    model = TrainedModel(run, **whole)
    images = [Image.new("RGB", (64, 64), (shade,) * 3) for shade in _GREYS]
    before = model.scores(images)
    merge(model.scorer.adapter)
    moved = float(np.abs(model.scores(images) - before).max())
    if not moved <= TOLERANCE:
        raise ModelError(f"merging moves a score by {moved:.3g}, above {TOLERANCE}; keep base and adapter apart")
    settings = {**model.task["settings"], "model": {**model.task["settings"]["model"], "revision": None, **whole}}
    about = {"base": MERGED, "base_sha256": "", "revision": None, "quantization": None, "dtype": "float32"}
    try:
        save_merged(model.scorer.adapter, out)
        write_task({**model.task, **about, "settings": settings}, out)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}; choose another folder with --out") from error
    return float(np.abs(TrainedModel(out).scores(images) - before).max())
