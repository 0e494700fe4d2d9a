"""A finished cell's scores of the test records, kept in its folder for comparisons.

Only the server's own splits are scored; no picture or feature is kept.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.records import targets
from carefl_secure.data.synthetic.corpus import SyntheticCorpus
from carefl_secure.data.synthetic.scene import context_shares
from carefl_secure.errors import RunError
from carefl_secure.evaluation.bootstrap import units_of
from carefl_secure.evaluation.figures import Figures
from carefl_secure.evaluation.metrics import choose_thresholds
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.staged_corpora import load_corpora

Floats = npt.NDArray[np.float64]

FACE, CONTEXT = 0.5, 0.9  # of the evidence in the context: at most, at least


def label_slices(labels: tuple[str, ...], *, drawn: bool) -> dict[str, list[int]]:
    """Return which labels the face decides and which the context decides, by column.

    Known for the drawn corpus only, from the rule of its private annotators; a category belongs to
    ``face`` where at most half of the evidence lies in the context, to ``context`` where at least
    nine tenths do, else to neither.
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
        """Return the figures as a function of how often each record counts."""
        return Statistic(self)

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


class Statistic:
    """Figures of a cell, means over its models where it has several.

    ``mAP`` and ``macro_f1`` over all labels, and ``mAP face``, ``mAP context`` over some.
    """

    def __init__(self, held: Scores) -> None:
        self._models: list[tuple[Figures, dict[str, Figures]]] = []
        for number, scores in enumerate(held.scores):
            cuts = None if held.thresholds is None else held.thresholds[number]
            whole = Figures(held.targets, scores, multi=cuts is not None, thresholds=cuts, names=("mAP", "macro_f1"))
            parts = {
                name: Figures(held.targets[:, rows], scores[:, rows], multi=cuts is not None, names=("mAP",))
                for name, rows in held.slices.items()
                if rows and held.targets[:, rows].any()
            }
            self._models.append((whole, parts))

    def __call__(self, weights: Floats | None = None) -> dict[str, float]:
        """Return the figures under weights ``[N]``, how many times each record counts."""
        rows = []
        for whole, parts in self._models:
            row = whole(weights)
            row = {name: row[name] for name in ("mAP", "macro_f1")}
            row |= {f"mAP {name}": part(weights)["mAP"] for name, part in parts.items()}
            rows.append(row)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class Bench:
    """Corpora, captions and a model under one configuration, ready to score adapters."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.corpora: Corpora = load_corpora(config, reporter)
        self.contexts: Contexts | None = load_contexts(config, self.corpora, reporter)
        self.scorer: LabelScorer = label_scorer(config, self.corpora.test.space)
        self.initial = self.scorer.adapter.vector()

    def score(self) -> tuple[npt.NDArray[np.float32], Floats | None]:
        """Score the test split with the adapter as it is, and choose thresholds on the public."""
        batch, base = self.config.performance.evaluation_batch, self.scorer.adapter.base
        said = self.contexts
        test = vision_features(base, self.corpora.test, self.reporter)
        scores = self.scorer.all(test, batch, None if said is None else said.test)
        if not self.corpora.test.space.multi:
            return scores, None
        public = vision_features(base, self.corpora.public, self.reporter)
        known = self.scorer.all(public, batch, None if said is None else said.public)
        return scores, choose_thresholds(targets(self.corpora.public), known)

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
