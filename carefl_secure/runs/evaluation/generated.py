"""Scores a finished run by the text that its model writes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from carefl_secure.config import load_config
from carefl_secure.data.records import targets
from carefl_secure.errors import RunError
from carefl_secure.evaluation.bootstrap import bootstrap, units_of
from carefl_secure.evaluation.decisions import DECISIONS
from carefl_secure.evaluation.figures import Figures
from carefl_secure.model.features import vision_features
from carefl_secure.model.generation import TextScorer, Written
from carefl_secure.model.saved import load_saved
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.captions import captions_of
from carefl_secure.runs.staged_corpora import load_corpora

__all__ = ["NO_RANKING", "Generated", "evaluate_generated"]

NO_RANKING = (
    "generated text gives label sets, not scores: no average precision follows from it; take the "
    "labels scorer for mAP"
)
"""What every user of these figures must be told."""


@dataclass(frozen=True)
class Generated:
    """Figures of generated answers.

    Parameters
    ----------
    run, split, space : str
    records : int
    constrained : bool
        Whether the model could write labels only.
    figures, untuned : dict of str to float
        Those of :data:`carefl_secure.evaluation.decisions.DECISIONS`, tuned and untuned.
    intervals : dict of str to dict
        Bootstrap intervals of ``figures``; ``low`` and ``high``.
    unparsable, untuned_unparsable : int
        Records whose answer named no label; they count as without a label.
    remark : str
    """

    run: str
    split: str
    space: str
    records: int
    constrained: bool
    figures: dict[str, float]
    untuned: dict[str, float]
    intervals: dict[str, dict[str, float | None]]
    unparsable: int
    untuned_unparsable: int
    remark: str = NO_RANKING

    def as_json(self) -> str:
        """Return everything as one JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def evaluate_generated(
    run: Path,
    reporter: Reporter,
    *,
    split: Literal["test", "public"] = "test",
    constrained: bool = False,
    replicates: int = 1000,
) -> Generated:
    """Let a run's model answer in words, and write ``RUN/evaluation/evaluation-generation.json``.

    Parameters
    ----------
    run : Path
    reporter : Reporter
    split : {"test", "public"}
    constrained : bool
        See :class:`carefl_secure.model.generation.TextScorer`.
    replicates : int
        Bootstrap resamples of persons.

    Raises
    ------
    RunError
        If there is no run, or the result cannot be written.
    ModelError
        If the run has no adapter.
    """
    folder = RunFolder.open(run)
    config = load_config(folder.config, ())
    corpora = load_corpora(config, reporter)
    scored = corpora.test if split == "test" else corpora.public
    scorer = label_scorer(config, scored.space)
    texts = TextScorer(scorer, constrained=constrained)
    features = vision_features(scorer.adapter.base, scored, reporter)
    said = captions_of(config, corpora, reporter)
    words = said(scored) if said else None
    truth = targets(scored)

    def figures(written: Written) -> Figures:
        scores = written.decisions.astype(np.float64)
        half = np.full(scores.shape[1], 0.5)
        return Figures(truth, scores, multi=True, thresholds=half, names=DECISIONS)

    untuned = texts.all(features, config.performance.evaluation_batch, words)  # B is zero
    load_saved(scorer.adapter, folder.adapter)
    tuned = texts.all(features, config.performance.evaluation_batch, words)
    units = units_of([record.subject for record in scored.records])
    spread = bootstrap(figures(tuned), units, replicates=replicates, seed=config.run.seed)
    made = Generated(
        run=folder.run_id,
        split=split,
        space=scored.space.name,
        records=len(scored.records),
        constrained=constrained,
        figures=figures(tuned)(),
        untuned=figures(untuned)(),
        intervals={
            name: {"low": _plain(one.low), "high": _plain(one.high)} for name, one in spread.items()
        },
        unparsable=int(tuned.unparsable.sum()),
        untuned_unparsable=int(untuned.unparsable.sum()),
    )
    suffix = "" if split == "test" else f"-{split}"
    file = folder.path / "evaluation" / f"evaluation-generation{suffix}.json"
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {file.parent}: {error.strerror}") from error
    write_atomically(file, made.as_json().encode())
    return made


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
