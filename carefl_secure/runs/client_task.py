"""Joins a model, a client's records and the clipping engine to a client's clipped sum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import targets
from carefl_secure.data.splits import Subset, first_of_each, subject_groups
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses, mean_gradient
from carefl_secure.model.vision.encode import record_features
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.privacy.sampling import sample_bound
from carefl_secure.progress import Reporter
from carefl_secure.runs.captions import Contexts
from carefl_secure.runs.corpora import Corpora

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelTask:
    """A ``LocalTask`` on a model; clients of a process share base and adapter object, which each loads before use."""

    losses: RecordLosses  # this client's cached features and labels
    clipping: Clipping
    by_person: tuple[npt.NDArray[np.int64], ...] = ()  # the indices of each person's records, for unit person
    rows: int = 0  # how many records every clipped sum computes with, whatever was sampled; 0 for no padding

    @property
    def dimension(self) -> int:
        """Number of entries of the flat adapter vector, with the one that `AdaptiveNorm` puts after it."""
        return self.losses.scorer.adapter.dimension + (self.clipping.adaptive is not None)

    @property
    def records(self) -> int:
        """Number of records that this client holds."""
        return len(self.losses)

    def clipped_sum(self, adapter: Vector, indices: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.float64]:
        """Sum the clipped per-record gradients at ``adapter``; see the protocol."""
        return self._clipped(adapter, indices, number, None)

    @property
    def persons(self) -> int:
        """Number of persons that this client holds."""
        return len(self.by_person)

    @property
    def most_records(self) -> int:
        """Number of records of the person that has most."""
        return max(map(len, self.by_person), default=0)

    def clipped_person_sum(
        self, adapter: Vector, persons: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        """Sum the clipped gradients of persons at ``adapter``; see the protocol."""
        chosen = [self.by_person[person] for person in persons.tolist()]
        groups = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
        indices = np.concatenate([np.zeros(0, np.int64), *chosen])
        return self._clipped(adapter, indices, number, groups)

    def trainable_entries(self, number: int) -> npt.NDArray[np.bool_]:
        """Return which entries train in a round."""
        held = self.losses.scorer.adapter
        with held.lock:
            trains = held.trainable_entries(number)
        return trains if self.clipping.adaptive is None else np.append(trains, False)

    def gradient(self, adapter: Vector, indices: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.float64]:
        """Return the unclipped gradient of a mean loss; see the protocol."""
        held = self.losses.scorer.adapter
        with held.lock:
            held.load(adapter[: held.dimension])
            held.module.train()
            found = mean_gradient(held.active(number), self.losses.losses, indices, self.clipping.micro_batch)
            out = np.zeros(self.dimension)
            out[: held.dimension][held.trainable_entries(number)] = found
        return out

    def _clipped(
        self, adapter: Vector, indices: npt.NDArray[np.int64], number: int, groups: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.float64]:
        held, clipping = self.losses.scorer.adapter, self.clipping
        adaptive = clipping.adaptive
        if adaptive is not None:
            clipping = replace(clipping, norm=adaptive.norm(adapter))
        with held.lock:
            held.load(adapter[: held.dimension])
            held.module.train()
            total = clipped_sum(
                held.module,
                held.active(number),
                self.losses.losses,
                indices,
                clipping,
                groups=groups,
                parallel_batches=held.base.parallel_batches,
                rows=self.rows,
            )
            out = np.zeros(held.dimension)
            out[held.trainable_entries(number)] = total.vector
        return out if adaptive is None else adaptive.extend(out, clipping.norm, total.balance)


def model_tasks(
    scorer: LabelScorer,
    corpora: Corpora,
    clipping: Clipping,
    reporter: Reporter,
    *,
    contexts: Contexts | None = None,
    by_person: bool = False,
    records_per_person: int | None = None,
    pad_rate: float | None = None,
) -> list[ModelTask]:
    """Encode the private images of the shares once and give every client its own, with captions.

    With ``by_person`` a task knows which of its records show one person; with
    ``records_per_person`` it holds the first so many of each, in the corpus' order. With
    ``pad_rate``, the sampling rate, every sum is padded to the largest sample (`sample_bound`).
    """
    each = records_per_person or 1
    said = None if contexts is None else contexts.private
    labels = targets(corpora.private)
    shares, groups = list(corpora.shares), [list[npt.NDArray[np.int64]]()] * len(corpora.shares)
    if by_person:
        groups = [subject_groups(corpora.private.records, share) for share in shares]
    if records_per_person is not None:
        kept = [first_of_each(held, records_per_person) for held in groups]
        shares = [share[places] for share, places in zip(shares, kept, strict=True)]
        groups = [subject_groups(corpora.private.records, share) for share in shares]
    # A site of a simulation encodes its own share alone.
    used = Subset(corpora.private, tuple(np.concatenate([np.zeros(0, np.int64), *shares]).tolist()))
    features = record_features(scorer.adapter, used, reporter)
    first = np.cumsum([0, *map(len, shares)])
    return [
        ModelTask(
            RecordLosses(
                scorer,
                features.select(np.arange(start, start + len(share))),
                labels[share],
                None if said is None else [said[i] for i in share.tolist()],
                reporter,
            ),
            clipping,
            tuple(held),
            0 if pad_rate is None else _rows(share, held if each == 1 else [], pad_rate, each),
        )
        for share, held, start in zip(shares, groups, first[:-1].tolist(), strict=True)
    ]


def _rows(share: npt.NDArray[np.int64], by_person: list[npt.NDArray[np.int64]], rate: float, most_each: int) -> int:
    """Return the most records of one sum: those of the largest persons where these are drawn."""
    if not by_person:
        return sample_bound(len(share), rate, most_each)
    sizes = sorted(map(len, by_person), reverse=True)
    return sum(sizes[: sample_bound(len(sizes), rate)])
