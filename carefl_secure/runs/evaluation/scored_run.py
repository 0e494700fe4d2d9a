"""A finished run that is opened to be scored: what its three scorers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from carefl_secure.config import load_config
from carefl_secure.data.records import Corpus, LabelSpace
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.saved import load_saved
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.model.vision.store import Features
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder, make_folder, write_atomically
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.captions import captions_of
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.staged_corpora import load_corpora

T = TypeVar("T")


class ScoredRun:
    """A run's settings, public records and model, loaded on first use; `RunError` if missing."""

    def __init__(self, run: Path, reporter: Reporter) -> None:
        self.folder = RunFolder.open(run)
        self.config = load_config(self.folder.config, ())
        self.reporter = reporter
        self.name = self.folder.path.resolve().name
        self.batch = self.config.performance.evaluation_batch

    @cached_property
    def corpora(self) -> Corpora:
        """Return the records of the run; no picture of a private one is read."""
        return load_corpora(self.config, self.reporter)

    def split(self, name: str) -> Corpus:
        """Return the run's own ``test`` or ``public`` split."""
        return self.corpora.test if name == "test" else self.corpora.public

    def scorer(self, space: LabelSpace) -> LabelScorer:
        """Return the base model with a fresh adapter, which changes nothing: B is zero."""
        return label_scorer(self.config, space)

    @cached_property
    def _captions(self) -> Callable[[Corpus], list[str]] | None:
        return captions_of(self.config, self.corpora, self.reporter)

    def captions(self, corpus: Corpus) -> list[str] | None:
        """Return the captions of a corpus; None where the run uses none."""
        return self._captions(corpus) if self._captions else None

    def features(self, scorer: LabelScorer, corpus: Corpus) -> Features:
        """Encode the pictures of a corpus."""
        return vision_features(scorer.adapter.base, corpus, self.reporter)

    def untuned_and_tuned(self, scorer: LabelScorer, answer: Callable[[], T]) -> tuple[T, T]:
        """Return answers of the fresh adapter, and of the run's own, which must exist and fit."""
        untuned = answer()
        load_saved(scorer.adapter, self.folder.adapter)
        return untuned, answer()

    def write(self, name: str, text: str) -> Path:
        """Write ``RUN/evaluation/NAME`` and return its path."""
        file = self.folder.path / "evaluation" / name
        make_folder(file.parent)
        write_atomically(file, text.encode())
        return file
