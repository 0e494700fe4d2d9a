"""A finished cell's scores of the test records, kept in its folder for comparisons.

Only the server's own splits are scored; no picture or feature is kept.
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
from carefl_secure.errors import RunError
from carefl_secure.evaluation.bootstrap import Statistic, units_of
from carefl_secure.evaluation.figures import Figures
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.build import centre_head, label_scorer
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.staged_corpora import load_corpora

Floats = npt.NDArray[np.float64]

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
    """Scores of the test records by one or several models.

    Parameters
    ----------
    targets : ndarray of bool, shape [N, K]
    scores : ndarray of float32, shape [models, N, K]
        Several models where each client trained its own.
    thresholds : ndarray of float64, shape [models, K], or None
        From the public split, by each model's own scores; None where one label holds.
    units : ndarray of int64, shape [N]
        Records of one person share a number.
    slices : dict of str to list of int
        See :func:`label_slices`.
    """

    targets: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    thresholds: Floats | None
    units: npt.NDArray[np.int64]
    slices: dict[str, list[int]]

    def statistic(self) -> Statistic:
        """Return the figures as a function of how often each record counts, ``[N]``.

        Means over the models: ``mAP`` and ``macro_f1`` of all labels, ``mAP face`` and ``mAP context`` of some.
        """
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
        self.config, self.reporter = config, reporter
        self.corpora: Corpora = load_corpora(config, reporter)
        self.contexts: Contexts | None = load_contexts(config, self.corpora, reporter)
        self.scorer: LabelScorer = label_scorer(config, self.corpora.test.space)
        centre_head(self.scorer.adapter, self.corpora.public, reporter)
        self.initial = self.scorer.adapter.vector()

    @cached_property
    def _evaluator(self) -> Evaluator:
        batch = self.config.performance.evaluation_batch
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
