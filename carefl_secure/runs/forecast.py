r"""How much of an update will be signal, from the plan and public gradients, before anything is spent.

A round opens the mean clipped gradient :math:`\mu` and noise of norm :math:`\sigma \sqrt D` for D trained values.
:math:`\lVert\mu\rVert` is estimated by the mean over m public records, which is too long by up to :math:`1/\sqrt m` of
the clipping norm: an upper bound. Over T rounds the signal grows as T and the noise as :math:`\sqrt T`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from carefl_secure.config import Config
from carefl_secure.data.records import targets
from carefl_secure.data.splits import Subset
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.vision.encode import record_features
from carefl_secure.progress import Reporter
from carefl_secure.runs.build import clipping_of, survivors_of
from carefl_secure.runs.captions import Contexts
from carefl_secure.runs.client_task import ModelTask
from carefl_secure.runs.corpora import Corpora

LOST = 0.02
"""Signal over noise of all rounds below which a run must be confirmed."""

_ENOUGH, _ENOUGH_LARGE, _ENOUGH_HEAD = 1.0, 4.0, 5.0
"""From where a run keeps four fifths of what it learns without noise: an adapter of the embedded base, of any other,
and a label head alone (``docs/defaults.md``)."""

_OPEN, _OPEN_LARGE = 512, 128  # most open records, of the embedded model and of any other
_GRADIENTS, _GRADIENTS_LARGE = 256, 32


@dataclass(frozen=True)
class Forecast:
    """What a round is expected to open: norms of ``update`` and lasting ``noise`` in its mean gradient.

    ``batch`` is the expected number of units in it; ``values`` the trained values, ``few`` those of the query and
    value layers among them, under an adapter of ``rank``, 0 for a label head alone. From a ratio of ``enough`` on a
    run should learn well.
    """

    update: float
    noise: float
    rounds: int
    batch: float
    values: int
    few: int
    rank: int
    unit: str
    enough: float = _ENOUGH

    @property
    def ratio(self) -> float:
        """Signal over noise, by norms, after all rounds; infinity without noise."""
        return self.update / self.noise * math.sqrt(self.rounds) if self.noise else math.inf

    @property
    def lost(self) -> bool:
        """Whether the run is nearly all noise."""
        return self.ratio < LOST

    def advice(self) -> list[str]:
        """Return what would bring the ratio to `enough`, the other settings as they are."""
        factor = self.enough / max(self.ratio, 1e-12)
        if factor <= 1:
            return []
        more = f"about {math.ceil(self.batch * factor):,} {self.unit} per round, {factor:.3g} times as many"
        if not self.rank:
            return [more]
        values = self.values / factor**2
        whole, few = int(self.rank * values / self.values), int(self.rank * values / self.few) if self.few else 0
        less = f"at most {max(1, int(values)):,} trained values in place of {self.values:,}"
        if whole or few:
            less = f"adapter.rank={whole}" if whole else f"adapter.targets=[q,v] with adapter.rank={few}"
        return [more, less]

    def sentence(self) -> str:
        """Return the forecast on one line."""
        if not self.noise:
            return "forecast: no noise is added"
        share = math.floor(1e4 * self.noise / math.hypot(self.noise, self.update)) / 100
        text = (
            f"forecast: a round's update has norm {self.update:.3g} at most and its noise {self.noise:.3g}, so "
            f"{share:.4g} % of what is opened is noise; over {self.rounds} rounds signal/noise is at most "
            f"{self.ratio:.2g}"
        )
        text += f". Below {LOST:g} a run spends its budget on noise alone" * self.lost
        return f"{text}. To learn well it needs {', or '.join(needs)}" if (needs := self.advice()) else text

    def to_json(self) -> dict[str, Any]:
        """Return the figures and what follows from them."""
        ratio = self.ratio if self.noise else None
        follows = {"signal_to_noise": ratio, "nearly_all_noise": self.lost, "needs": self.advice()}
        return {**asdict(self), **follows, "sentence": self.sentence()}


def public_task(
    config: Config, plan: RunPlan, scorer: LabelScorer, corpora: Corpora, contexts: Contexts | None, reporter: Reporter
) -> ModelTask:
    """Return some open records as one more client would hold them, clipped to the plan's norm.

    On the embedded corpus they are labelled with the private annotators' habits, as a run's own public records are;
    with captions, which only its public split has, they are of that split.
    """
    chosen = corpora.open if contexts is None else corpora.public
    count = min(len(chosen.records), _OPEN if config.model.base == "embedded" else _OPEN_LARGE)
    some = Subset(chosen, tuple(range(count)))
    said = None if contexts is None else contexts.public[:count]
    features = record_features(scorer.adapter, some, reporter)
    fixed = replace(clipping_of(config, plan), adaptive=None)
    return ModelTask(RecordLosses(scorer, features, targets(some), said, reporter), fixed)


def forecast(config: Config, plan: RunPlan, task: ModelTask) -> Forecast:
    """Measure public gradients at the adapter as it is, and set them against the plan's noise."""
    privacy, local, left, adapter = plan.privacy, plan.local, survivors_of(config), task.losses.scorer.adapter
    update = privacy.clipping_norm
    if privacy.unit != "client":
        count = min(task.records, _GRADIENTS if config.model.base == "embedded" else _GRADIENTS_LARGE)
        update = float(np.linalg.norm(task.clipped_sum(adapter.vector(), np.arange(count), 1))) / count
        if local is not None:  # each local step moves by its rate times the mean gradient
            update *= local.steps * local.learning_rate
    alone = adapter.head is not None and adapter.head.alone
    trains = adapter.trainable_entries(1) | adapter.trainable_entries(2)
    return Forecast(
        update=update,
        noise=plan.lasting_noise_norm(left) * math.sqrt(trains.mean()) if plan.protected else 0.0,
        rounds=privacy.rounds,
        batch=float(left) if privacy.unit == "client" else plan.expected_batch(left),
        values=int(trains.sum()),
        few=sum(p.numel() for name, p in adapter.parameters if ".q_proj." in name or ".v_proj." in name),
        rank=0 if alone else config.adapter.rank,
        unit={"client": "clients", "person": "persons"}.get(privacy.unit, "records"),
        enough=_ENOUGH_HEAD if alone else _ENOUGH if config.model.base == "embedded" else _ENOUGH_LARGE,
    )
