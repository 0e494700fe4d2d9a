r"""A cell's scores of the test records, kept in its folder, and cells that are trained without a federation.

Only the server's own splits are scored; no picture or feature is kept.

The references of the parity table are one party with the adapter and its start, loss, sampling, clipping, number of
steps and optimizer of a federated run. *Local*: a client alone on its own records, without noise, as nothing leaves
it. *Central*: all records at one party; with privacy, DP-SGD with Gaussian noise,

.. math:: g = \Bigl(\sum_{i \in B} \bar g_i + \mathcal N(0, z^2 C^2 I)\Bigr) / (q N)

where every record is in B with probability q on its own.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.records import targets
from carefl_secure.data.synthetic.corpus import SyntheticCorpus
from carefl_secure.data.synthetic.scene import context_shares
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.evaluation.bootstrap import Statistic, units_of
from carefl_secure.evaluation.figures import Figures
from carefl_secure.federation.server.optimizers import Listener
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.vision.encode import record_features
from carefl_secure.noise import KeyStream, gaussian
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.privacy.sampling import poisson_sample
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.build import evaluation_batch, fit_head, key_source, label_scorer, make_optimizer, micro_batch
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.client_task import ModelTask
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.plan_from_config import UNCLIPPED, central_budget
from carefl_secure.runs.prepare import begin_as_federated
from carefl_secure.runs.sample_rate import resolve_sample_rate
from carefl_secure.runs.staged_corpora import load_corpora

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]

FACE, CONTEXT = 0.5, 0.9  # of the evidence in the context: at most, at least


def label_slices(labels: tuple[str, ...], *, drawn: bool) -> dict[str, list[int]]:
    """Return which labels the face decides and which the context decides, by column.

    Known for the drawn corpus only, from the rule of its private annotators; a category belongs to ``face`` where at
    most half of the evidence lies in the context, to ``context`` where at least nine tenths do, else to neither.
    """
    shares = context_shares("private")
    if not drawn or set(labels) != set(shares):
        return {}
    return {
        "face": [i for i, name in enumerate(labels) if shares[name] <= FACE],
        "context": [i for i, name in enumerate(labels) if shares[name] >= CONTEXT],
    }


@dataclass(frozen=True)
class Scores:
    """Scores of the test records by one or several models: several where each client trained its own."""

    targets: npt.NDArray[np.bool_]  # [N, K]
    scores: npt.NDArray[np.float32]  # [models, N, K]
    thresholds: Floats | None  # [models, K], from the public split, by each model's scores; None with one label
    units: npt.NDArray[np.int64]  # [N]; records of one person share a number
    slices: dict[str, list[int]]  # see label_slices

    def statistic(self) -> Statistic:
        """Return the mean figures of the models (mAP, macro_f1, mAP of each slice) as a function of weights [N]."""
        models = []
        for number, scores in enumerate(self.scores):
            cuts = None if self.thresholds is None else self.thresholds[number]
            multi = cuts is not None
            parts = {
                f"mAP {name}": Figures(self.targets[:, rows], scores[:, rows], multi=multi, names=("mAP",))
                for name, rows in self.slices.items()
                if rows and self.targets[:, rows].any()
            }
            whole = Figures(self.targets, scores, multi=multi, thresholds=cuts, names=("mAP", "macro_f1"))
            models.append((whole, parts))

        def figures(weights: Floats | None = None) -> dict[str, float]:
            rows = [
                whole(weights) | {name: part(weights)["mAP"] for name, part in parts.items()}
                for whole, parts in models
            ]
            return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

        return figures

    def write(self, path: Path) -> None:
        """Keep them in an npz file."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "targets": self.targets,
            "scores": self.scores,
            "units": self.units,
            **{f"slice.{name}": np.array(rows, np.int64) for name, rows in self.slices.items()},
        }
        if self.thresholds is not None:
            arrays["thresholds"] = self.thresholds
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read what :meth:`write` kept; a missing or damaged file raises `RunError`."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files}
            return cls(
                held["targets"],
                held["scores"],
                held.get("thresholds"),
                held["units"],
                {
                    name.removeprefix("slice."): rows.tolist()
                    for name, rows in held.items()
                    if name.startswith("slice.")
                },
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"the scores {path} cannot be read: {error}; remove their folder and run again") from error


class Bench:
    """Corpora, captions and a model under one configuration, ready to score adapters."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self.reporter = reporter
        self.corpora: Corpora = load_corpora(config, reporter)
        self.contexts: Contexts | None = load_contexts(config, self.corpora, reporter)
        self.scorer: LabelScorer = label_scorer(config, self.corpora.test.space)
        fit_head(config, self.scorer, self.corpora, self.contexts, reporter)
        self.config, _ = resolve_sample_rate(config, self.corpora, self.scorer.adapter)
        self.initial = self.scorer.adapter.vector()

    @cached_property
    def begun(self) -> tuple[Config, Vector]:
        """The settings with their rate, and the adapter, with which a federated run would begin."""
        self.scorer.adapter.load(self.initial)
        config = begin_as_federated(self.config, self.scorer, self.corpora, self.contexts, self.reporter)
        return config, self.scorer.adapter.vector()

    @cached_property
    def _evaluator(self) -> Evaluator:
        batch = evaluation_batch(self.config)
        return Evaluator(self.scorer, self.corpora, batch, self.reporter, self.contexts)

    def score(self) -> tuple[npt.NDArray[np.float32], Floats | None]:
        """Score the test split with the adapter as it is, and choose thresholds on the public."""
        return self._evaluator.scores(), self._evaluator.thresholds()

    def held(self, found: list[tuple[npt.NDArray[np.float32], Floats | None]]) -> Scores:
        """Return the scores of one or several models together with the targets."""
        test = self.corpora.test
        cuts = [cut for _, cut in found if cut is not None]
        return Scores(
            targets(test).astype(np.bool_),
            np.stack([scores for scores, _ in found]),
            np.stack(cuts) if cuts else None,
            units_of([record.subject for record in test.records]),
            label_slices(test.space.labels, drawn=isinstance(test, SyntheticCorpus)),
        )


def train_locally(bench: Bench) -> list[Vector]:
    """Train every client alone on its own records, without noise; return the adapters in order."""
    shares = enumerate(bench.corpora.shares)
    return [_descend(bench, share, 0.0, f"local/{client}") for client, share in shares]


def train_centrally(bench: Bench) -> tuple[list[Vector], float | None]:
    """Train on all private records at once, with DP-SGD unless ``privacy.unit`` is none.

    Return the one adapter, and epsilon at ``privacy.delta``: None without noise. A unit other than
    record and none raises `ConfigError`.

    Guarantees
    ----------
    Under unit record the adapter is (epsilon, delta)-differentially private for adding or removing
    one record, towards everybody but the party itself, which sees all records. The noise is
    Gaussian from the system's entropy; it is a double, not an exact normal.
    """
    config, records = bench.config, len(bench.corpora.private.records)
    everything = np.arange(records, dtype=np.int64)
    if config.privacy.unit == "none":
        return [_descend(bench, everything, 0.0, "central")], None
    if config.privacy.unit != "record":
        raise ConfigError(
            f"a central cell protects single records or nothing, not privacy.unit="
            f"{config.privacy.unit}; set record or none"
        )
    spent = central_budget(config)
    return [_descend(bench, everything, spent.noise_multiplier, "central")], spent.epsilon


def _descend(bench: Bench, share: npt.NDArray[np.int64], noise: float, purpose: str) -> Vector:
    """Take ``federation.rounds`` steps on some of the private records, from where a federated run begins."""
    corpora, said = bench.corpora, bench.contexts
    if bench.config.privacy.target_unclipped_quantile is not None:
        raise ConfigError("a local or central cell needs a fixed norm; leave out privacy.target_unclipped_quantile")
    if bench.config.sums_updates:
        raise ConfigError(
            "a local or central cell takes one step on one gradient at a time, and these settings have clients take "
            "several; set federation.aggregator=fedadam and leave out federation.local_steps"
        )
    config, start = bench.begun
    private = config.privacy.unit != "none" and noise > 0
    clip = config.privacy.clipping_norm if private else UNCLIPPED
    features = record_features(bench.scorer.adapter, corpora.private, bench.reporter)
    task = ModelTask(
        RecordLosses(
            bench.scorer,
            features.select(share),
            targets(corpora.private)[share],
            None if said is None else [said.private[i] for i in share.tolist()],
        ),
        Clipping(clip, config.privacy.normalise and private, config.privacy.clipping, micro_batch(config)),
    )
    rate, adapter = config.sample_rate, start.copy()
    batch = rate * len(share)
    optimizer = make_optimizer(config, bench.scorer.adapter)
    source = key_source(config)(0)
    for number in range(1, config.federation.rounds + 1):
        drawn = poisson_sample(len(share), rate, KeyStream(source.key(f"{purpose}/sample")))
        gradient = task.clipped_sum(adapter, drawn, number)
        if noise > 0:
            stream = KeyStream(source.key(f"{purpose}/noise"))
            gradient = gradient + gaussian(stream, len(gradient), noise * clip)
        if isinstance(optimizer, Listener):
            optimizer.observe(1.0, (noise * clip / batch) ** 2)
        adapter = optimizer.step(adapter, gradient / batch)
    return adapter
