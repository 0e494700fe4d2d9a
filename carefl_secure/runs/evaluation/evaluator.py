"""Scores of the adapter on held-out records, and the baselines they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.records import Corpus, targets
from carefl_secure.evaluation.baselines import logistic_regression, score_baselines
from carefl_secure.evaluation.decisions import choose_thresholds
from carefl_secure.evaluation.figures import Figures
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.label_head import HeadLosses, LabelHead
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.lora import Adapter
from carefl_secure.model.vision.encode import frozen_features, record_features
from carefl_secure.model.vision.tiles import whole_pictures
from carefl_secure.noise import KeySource, KeyStream, SystemKeySource, gaussian
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.progress import Reporter
from carefl_secure.runs.build import NOISY_RATE, head_betas
from carefl_secure.runs.captions import Contexts
from carefl_secure.runs.client_task import Vector
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.plan_from_config import central_budget


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
        self._test_captions = None if contexts is None else contexts.test
        self._public_captions = None if contexts is None else contexts.public
        self._scorer, self._batch, self._texts, self._reporter = scorer, batch, texts, reporter
        self._test = record_features(scorer.adapter, corpora.test, reporter)
        self._test_targets = targets(corpora.test)
        multi = corpora.test.space.multi
        self._public = record_features(scorer.adapter, corpora.public, reporter) if multi else None
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
        return self._scorer.all(self._test, self._batch, self._test_captions, self._reporter)

    def thresholds(self) -> npt.NDArray[np.float64] | None:
        """Choose thresholds on the public split with the adapter as it is; None where one label holds."""
        if self._public is None:
            return None
        scores = self._scorer.all(self._public, self._batch, self._public_captions, self._reporter)
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


_BATCH = 256


def feature_baselines(
    config: Config, adapter: Adapter, train: Corpus, test: Corpus, public: Corpus, reporter: Reporter
) -> dict[str, float]:
    """Return the test mAP of ``feature_logistic`` and, in a private run, of ``feature_logistic_dp``.

    Both see what a `LabelHead` sees. The first is fitted to convergence and protects nothing; the second takes the
    run's rounds, sampling rate and clipping, at one party: central DP-SGD, with Gaussian noise for the run's epsilon
    and delta by the same accountant. Its head is centred on ``public``.

    Guarantees
    ----------
    ``feature_logistic_dp`` alone costs the run's epsilon on the records of ``train``, and ``feature_logistic`` has no
    bound: give private records here only where nothing protects them anyway.
    """
    parts = {"train": train, "test": test, "public": public}
    seen = {}
    for name, corpus in parts.items():
        seen[name] = whole_pictures(frozen_features(adapter, corpus, reporter)).float().cpu()
    known, truth = targets(train).astype(np.float32), targets(test)
    size = int(adapter.base.processor.image_seq_len), seen["train"].shape[2]
    head = LabelHead(train.space.labels, *size, multi=train.space.multi)
    head.set_centre(seen["public"])
    x, new = (np.asarray(head.inputs(seen[name]).detach().numpy())[:, :-1] for name in ("train", "test"))

    def scored(scores: npt.NDArray[np.float32]) -> float:
        return Figures(truth, scores, multi=True, names=("mAP",))()["mAP"]

    found = {"feature_logistic": scored(logistic_regression(x, known, new))}
    if config.privacy.unit != "none":
        learner = HeadLosses(head, seen["train"], known, multi=train.space.multi)
        private_head(learner, config, len(train.records), central_budget(config).noise_multiplier, SystemKeySource())
        found["feature_logistic_dp"] = scored(learner.scores(seen["test"]))
    return found


def private_head(learner: HeadLosses, config: Config, records: int, noise: float, keys: KeySource) -> None:
    """Train a head alone by central DP-SGD with noise of ``noise`` clipping norms in every round's sum."""
    weight = learner.head.linear.weight
    clip = Clipping(config.privacy.clipping_norm, config.privacy.normalise, "native", _BATCH)
    rate, optimizer = config.sample_rate, FedAdam(NOISY_RATE, head_betas(config))
    point: npt.NDArray[np.float32] = weight.detach().numpy().ravel().copy()
    for number in range(config.federation.rounds):
        drawn = poisson_sample(records, rate, KeyStream(keys.key(f"baseline/{number}/sample")))
        total = clipped_sum(learner.head, learner.parameters(), learner.losses, drawn, clip).vector
        if noise > 0:
            total += gaussian(KeyStream(keys.key(f"baseline/{number}/noise")), len(total), noise * clip.norm)
        point = optimizer.step(point, total / (rate * records))
        learner.step(point)
