"""Scores of the adapter on held-out records, and the baselines they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import targets
from carefl_secure.evaluation.baselines import score_baselines
from carefl_secure.evaluation.decisions import choose_thresholds
from carefl_secure.evaluation.figures import Figures
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import Reporter
from carefl_secure.runs.captions import Contexts
from carefl_secure.runs.client_task import Vector
from carefl_secure.runs.corpora import Corpora


class Evaluator:
    """Scores an adapter on the server's own splits; no client's record is read.

    The captions of the server's splits (``contexts``) are made and arranged as the clients' are.
    With ``texts`` the model's text decides macro F1; mAP still ranks by label likelihood.
    """

    def __init__(
        self,
        scorer: LabelScorer,
        corpora: Corpora,
        batch: int,
        reporter: Reporter,
        contexts: Contexts | None = None,
        texts: TextScorer | None = None,
    ) -> None:
        base = scorer.adapter.base
        self._test_captions = None if contexts is None else contexts.test
        self._public_captions = None if contexts is None else contexts.public
        self._scorer, self._batch, self._texts = scorer, batch, texts
        self._test = vision_features(base, corpora.test, reporter)
        self._test_targets = targets(corpora.test)
        multi = corpora.test.space.multi
        self._public = vision_features(base, corpora.public, reporter) if multi else None
        self._public_targets = targets(corpora.public)

    def __call__(self, adapter: Vector) -> dict[str, float]:
        """Return ``mAP`` and ``macro_f1`` of an adapter.

        Where several labels may hold, F1 uses one threshold per label, chosen on the public split
        with the same adapter; otherwise the most likely label. With ``texts``, F1 follows what the
        model writes, and ``unparsable`` is the share of answers that name no label.
        """
        self._scorer.adapter.load(adapter)
        scores = self.scores()
        if self._texts is not None:
            written = self._texts.all(self._test, self._batch, self._test_captions)
            truth, half = self._test_targets, np.full(scores.shape[1], 0.5)
            decided = Figures(truth, written.decisions.astype(float), multi=True, thresholds=half, names=("macro_f1",))
            ranked = Figures(truth, scores, multi=True, names=("mAP",))
            return {**ranked(), **decided(), "unparsable": float(written.unparsable.mean())}
        thresholds = self.thresholds()
        multi, names = thresholds is not None, ("mAP", "macro_f1")
        return Figures(self._test_targets, scores, multi=multi, thresholds=thresholds, names=names)()

    def scores(self) -> npt.NDArray[np.float32]:
        """Score the test split with the adapter as it is."""
        return self._scorer.all(self._test, self._batch, self._test_captions)

    def thresholds(self) -> npt.NDArray[np.float64] | None:
        """Choose thresholds on the public split with the adapter as it is; None where one label holds."""
        if self._public is None:
            return None
        scores = self._scorer.all(self._public, self._batch, self._public_captions)
        return choose_thresholds(self._public_targets, scores)


def final_figures(
    row: Mapping[str, float | int | str],
    before: Mapping[str, float],
    evaluate: Callable[[Vector], dict[str, float]],
    adapter: Vector,
) -> dict[str, float]:
    """Return the figures of a final adapter, from its round's own row where that was scored.

    ``row`` is of the last finished round; a resumed run that lost its last, paid rounds may lack
    its scores. ``before`` names the figures. ``adapter``, float32 [D], is the one after that round.
    """
    scored = {name: float(row[name]) for name in before if name in row}
    return scored if len(scored) == len(before) else evaluate(adapter)


def baseline_scores(corpora: Corpora) -> dict[str, float]:
    """Return the test mAP of the simple baselines, fitted on the open split: nothing private."""
    scored = score_baselines(
        [corpora.open.image(i) for i in range(len(corpora.open.records))],
        targets(corpora.open),
        [corpora.test.image(i) for i in range(len(corpora.test.records))],
        targets(corpora.test),
    )
    return {name: figures["mAP"] for name, figures in scored.items()}
