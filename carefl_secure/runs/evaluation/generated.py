"""Scores a finished run by the text that its model writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from carefl_secure.data.records import targets
from carefl_secure.evaluation.bootstrap import bootstrap, units_of
from carefl_secure.evaluation.decisions import DECISIONS
from carefl_secure.evaluation.figures import Figures
from carefl_secure.model.generation import GeneratedLabels, TextScorer
from carefl_secure.progress import Reporter
from carefl_secure.rounding import finite
from carefl_secure.runs.evaluation.evaluate import ScoredRun

NO_RANKING = "generated text gives label sets, not scores, so no average precision; take the labels scorer for mAP"
"""The remark that every reader of these figures needs."""


@dataclass(frozen=True)
class Generated:
    """Figures of generated answers; an unparsable one, which named no label, counts as without a label."""

    run: str
    split: str
    space: str
    records: int
    constrained: bool  # whether the model could write labels only
    figures: dict[str, float]  # those of `carefl_secure.evaluation.decisions.DECISIONS`, and so `untuned`
    untuned: dict[str, float]
    intervals: dict[str, dict[str, float | None]]  # of `figures`, by bootstrap: low and high
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
    """Score a run by its generated answers: ``RUN/evaluation/evaluation-generation.json``.

    ``constrained`` is as in :class:`carefl_secure.model.generation.TextScorer`; ``replicates`` are
    bootstrap resamples of persons. A missing run raises `RunError`, a missing adapter `ModelError`.
    """
    opened = ScoredRun(run, reporter)
    corpus = opened.split(split)
    scorer = opened.scorer(corpus.space)
    texts = TextScorer(scorer, constrained=constrained)
    features, words = opened.features(scorer, corpus), opened.captions(corpus)
    truth = targets(corpus)

    def figures(written: GeneratedLabels) -> Figures:
        scores = written.decisions.astype(np.float64)
        half = np.full(scores.shape[1], 0.5)
        return Figures(truth, scores, multi=True, thresholds=half, names=DECISIONS)

    untuned, tuned = opened.untuned_and_tuned(scorer, lambda: texts.all(features, opened.batch, words))
    units = units_of([record.subject for record in corpus.records])
    seed = opened.config.run.seed
    spread = bootstrap(figures(tuned), units, replicates=replicates, seed=seed)
    made = Generated(
        run=opened.folder.run_id,
        split=split,
        space=corpus.space.name,
        records=len(corpus.records),
        constrained=constrained,
        figures=figures(tuned)(),
        untuned=figures(untuned)(),
        intervals={name: {"low": finite(one.low), "high": finite(one.high)} for name, one in spread.items()},
        unparsable=int(tuned.unparsable.sum()),
        untuned_unparsable=int(untuned.unparsable.sum()),
    )
    suffix = "" if split == "test" else f"-{split}"
    opened.write(f"evaluation-generation{suffix}.json", made.as_json())
    return made
