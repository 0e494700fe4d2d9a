"""Joins a model, a client's records and the clipping engine to the one sum a client gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carefl_secure.data.people import first_of_each, people
from carefl_secure.data.records import targets
from carefl_secure.evaluation.floors import floors
from carefl_secure.evaluation.metrics import choose_thresholds, macro_f1, mean_average_precision
from carefl_secure.federation.contexts import Contexts
from carefl_secure.federation.corpora import Corpora
from carefl_secure.model.descent import mean_gradient
from carefl_secure.model.features import vision_features
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.learner import LabelScorer, Learner
from carefl_secure.privacy.clipping import Engine, clipped_sum
from carefl_secure.progress import Reporter

__all__ = ["Evaluator", "ModelTask", "baseline_floors", "final_figures", "model_tasks"]

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelTask:
    """One client's work: a :class:`carefl_secure.federation.task.LocalTask` on a real model.

    The clients of one process share the frozen base and the adapter object; each loads the
    round's adapter before it uses it.

    Parameters
    ----------
    learner : Learner
        Holds this client's cached features and labels.
    clipping_norm : float
    normalise : bool
    engine : {"native", "opacus"}
    micro_batch : int
    people : tuple of ndarray of int64, optional
        Records of each person, for the unit person; places in the learner.
    """

    learner: Learner
    clipping_norm: float
    normalise: bool
    engine: Engine
    micro_batch: int
    people: tuple[npt.NDArray[np.int64], ...] = ()

    @property
    def dimension(self) -> int:
        """Number of entries of the flat adapter vector."""
        return self.learner.scorer.adapter.dimension

    @property
    def records(self) -> int:
        """Number of records that this client holds."""
        return len(self.learner)

    def clipped_sum(
        self, adapter: Vector, indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        """Sum the clipped per-record gradients at ``adapter``; see the protocol."""
        return self._clipped(adapter, indices, number, None)

    @property
    def persons(self) -> int:
        """Number of persons that this client holds."""
        return len(self.people)

    @property
    def most_records(self) -> int:
        """Number of records of the person that has most."""
        return max(map(len, self.people), default=0)

    def clipped_person_sum(
        self, adapter: Vector, persons: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        """Sum the clipped gradients of persons at ``adapter``; see the protocol."""
        chosen = [self.people[person] for person in persons.tolist()]
        groups = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
        return self._clipped(adapter, np.concatenate(chosen), number, groups)

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        """Return which entries train in a round."""
        held = self.learner.scorer.adapter
        with held.lock:
            return held.mask(number)

    def gradient(
        self, adapter: Vector, indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        """Return the unclipped gradient of a mean loss; see the protocol."""
        held = self.learner.scorer.adapter
        with held.lock:
            held.load(adapter)
            held.module.train()
            found = mean_gradient(
                held.active(number), self.learner.losses, indices, self.micro_batch
            )
            out = np.zeros(held.dimension)
            out[held.mask(number)] = found
        return out

    def _clipped(
        self,
        adapter: Vector,
        indices: npt.NDArray[np.int64],
        number: int,
        groups: npt.NDArray[np.int64] | None,
    ) -> npt.NDArray[np.float64]:
        held = self.learner.scorer.adapter
        with held.lock:
            held.load(adapter)
            held.module.train()
            total = clipped_sum(
                held.module,
                held.active(number),
                self.learner.losses,
                indices,
                clipping_norm=self.clipping_norm,
                normalise=self.normalise,
                engine=self.engine,
                micro_batch=self.micro_batch,
                groups=groups,
                lanes=held.base.lanes,
            )
            out = np.zeros(held.dimension)
            out[held.mask(number)] = total.vector
        return out


def model_tasks(
    scorer: LabelScorer,
    corpora: Corpora,
    *,
    clipping_norm: float,
    normalise: bool,
    engine: Engine,
    micro_batch: int,
    reporter: Reporter,
    contexts: Contexts | None = None,
    by_person: bool = False,
    records_per_person: int | None = None,
) -> list[ModelTask]:
    """Encode the private images once and give every client its share, captions included.

    With ``by_person`` a task knows which of its records show one person; with
    ``records_per_person`` it holds the first so many of each, in the corpus' order.
    """
    said = None if contexts is None else contexts.private
    features = vision_features(scorer.adapter.base, corpora.private, reporter)
    labels = targets(corpora.private)
    shares, groups = list(corpora.shares), [list[npt.NDArray[np.int64]]()] * len(corpora.shares)
    if by_person:
        groups = [people(corpora.private.records, share) for share in shares]
    if records_per_person is not None:
        kept = [first_of_each(held, records_per_person) for held in groups]
        shares = [share[places] for share, places in zip(shares, kept, strict=True)]
        groups = [people(corpora.private.records, share) for share in shares]
    return [
        ModelTask(
            Learner(
                scorer,
                features[share],
                labels[share],
                None if said is None else [said[i] for i in share.tolist()],
            ),
            clipping_norm,
            normalise,
            engine,
            micro_batch,
            tuple(held),
        )
        for share, held in zip(shares, groups, strict=True)
    ]


class Evaluator:
    """Scores an adapter on the server's own splits; no client's record is touched.

    Parameters
    ----------
    scorer : LabelScorer
    corpora : Corpora
    batch : int
    reporter : Reporter
    contexts : Contexts, optional
        The captions of the server's own splits are made and arranged as the clients' are.
    texts : TextScorer, optional
        Decides macro F1 by what the model writes; mAP ranks by label likelihood all the same.
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
        self._texts = texts
        self._test_captions = None if contexts is None else contexts.test
        self._public_captions = None if contexts is None else contexts.public
        self._scorer = scorer
        self._batch = batch
        self._test = vision_features(base, corpora.test, reporter)
        self._test_targets = targets(corpora.test)
        multi = corpora.test.space.multi
        self._public = vision_features(base, corpora.public, reporter) if multi else None
        self._public_targets = targets(corpora.public)

    def __call__(self, adapter: Vector) -> dict[str, float]:
        """Return ``mAP`` and ``macro_f1`` of an adapter.

        Where several labels may hold, F1 uses one threshold per label, chosen on the public
        split with the same adapter; otherwise the most likely label. With ``texts``, F1 follows
        what the model writes, and ``unparsable`` is the share of answers that name no label.
        """
        self._scorer.adapter.load(adapter)
        scores = self._scorer.all(self._test, self._batch, self._test_captions)
        if self._texts is not None:
            written = self._texts.all(self._test, self._batch, self._test_captions)
            half = np.full(scores.shape[1], 0.5)
            return {
                "mAP": mean_average_precision(self._test_targets, scores),
                "macro_f1": macro_f1(self._test_targets, written.decisions.astype(float), half),
                "unparsable": float(written.unparsable.mean()),
            }
        thresholds = None
        if self._public is not None:
            open_scores = self._scorer.all(self._public, self._batch, self._public_captions)
            thresholds = choose_thresholds(self._public_targets, open_scores)
        return {
            "mAP": mean_average_precision(self._test_targets, scores),
            "macro_f1": macro_f1(self._test_targets, scores, thresholds),
        }


def final_figures(
    row: Mapping[str, float | int | str],
    before: Mapping[str, float],
    evaluate: Callable[[Vector], dict[str, float]],
    adapter: Vector,
) -> dict[str, float]:
    """Return the figures of a final adapter, from its round's own row where that was scored.

    Parameters
    ----------
    row : mapping
        Of the last finished round. One that was resumed, and whose last rounds were paid for and
        lost, may not have been scored.
    before : mapping
        Names what is asked for.
    evaluate : callable(adapter) -> dict
        An `Evaluator`.
    adapter : ndarray of float32, shape [D]
        After that round.
    """
    scored = {name: float(row[name]) for name in before if name in row}
    return scored if len(scored) == len(before) else evaluate(adapter)


def baseline_floors(corpora: Corpora) -> dict[str, float]:
    """Return the test mAP of the simple baselines, fitted on the open split: nothing private."""
    scored = floors(
        [corpora.open.image(i) for i in range(len(corpora.open.records))],
        targets(corpora.open),
        [corpora.test.image(i) for i in range(len(corpora.test.records))],
        targets(corpora.test),
    )
    return {name: figures["mAP"] for name, figures in scored.items()}
