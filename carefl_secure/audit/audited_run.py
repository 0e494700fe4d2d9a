"""The run under audit: its plan, its model and its records, as its own parties hold them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carefl_secure.config import Config, load_config
from carefl_secure.data.records import Corpus, targets
from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError, PrivacyError, RunError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import StagedPlan
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.lora import VISION_TARGETS
from carefl_secure.model.saved import load_saved
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.privacy import Event
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import clipping_of, evaluation_batch, label_scorer
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.client_task import ModelTask
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.plan_from_config import entries_beside
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.strict_json import load_json

Vector = npt.NDArray[np.float32]


def read_plan(folder: RunFolder) -> StagedPlan:
    """Return the plan that a run was made with; RunError if it is unreadable or does not match the run's event."""
    try:
        return StagedPlan.from_json(load_json(folder.plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError, PrivacyError) as error:
        raise RunError(
            f"cannot read the plan of {folder.path}: {error}; audit a finished run of this version"
        ) from error


@dataclass(frozen=True)
class Known:
    """Some records with what the frozen vision side makes of them."""

    corpus: Corpus
    features: Tensor
    targets: npt.NDArray[np.float32]
    captions: list[str] | None

    def attribute(self, name: str) -> npt.NDArray[np.str_]:
        """Return one attribute of all records; empty where it is not known."""
        return np.array([record.attributes.get(name, "") for record in self.corpus.records])


class AuditedRun:
    """A finished run, opened for its auditor; RunError where it is no run or never finished."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self.folder = RunFolder.open(path)
        if not (self.folder.adapter / "adapter_model.safetensors").is_file():
            raise RunError(f"{path} holds no adapter: the run did not finish; resume it first")
        self.config: Config = load_config(self.folder.config, ())
        if len(self.config.stages.spaces) > 1 and self.config.stages.handover == "merge":
            raise RunError(
                f"{path} merged its stages: what it saved holds a frozen adapter beside the one that the last stage "
                "trained, and the attacks know a single one; audit a run with stages.handover=carry or restart"
            )
        if self.config.model.image_splitting or self.config.model.frames > 1:
            raise RunError(f"{path} took tiles or frames, and the attacks know whole images; audit another run")
        if set(self.config.adapter.targets) & set(VISION_TARGETS):
            raise RunError(
                f"{path} trained its vision side, and the attacks know frozen features; audit a run whose "
                "adapter.targets leave connector and vision out"
            )
        self._stages = read_plan(self.folder)
        self.plan: RunPlan = self._stages.whole
        self._reporter = reporter

    @cached_property
    def planned(self) -> list[Event]:
        """Everything that the run may release: all rounds of all its stages."""
        return self._stages.events

    @cached_property
    def corpora(self) -> Corpora:
        """The run's corpora."""
        return load_corpora(self.config, self._reporter)

    @cached_property
    def scorer(self) -> LabelScorer:
        """The base model with an adapter; both the base and the tuned model come from it."""
        return label_scorer(self.config, self.corpora.private.space)

    @cached_property
    def initial(self) -> Vector:
        """The adapter before the first round: the base model."""
        return self._vectors[0]

    @cached_property
    def tuned(self) -> Vector:
        """The released adapter, read from ``adapter/`` as any user would."""
        return self._vectors[1]

    @property
    def opening(self) -> Vector:
        """The released adapter as a round would open with it: with the clipping norm, where that is adaptive."""
        adaptive = AdaptiveNorm.of(self.plan.privacy)
        return self.tuned if adaptive is None else adaptive.begin(self.tuned)

    @cached_property
    def _vectors(self) -> tuple[Vector, Vector]:
        adapter = self.scorer.adapter
        if adapter.dimension + entries_beside(self.config) != self.plan.encoding.dimension:
            raise RunError(
                f"the adapter has {adapter.dimension} entries, the plan of {self.folder.path} "
                f"{self.plan.encoding.dimension}; the folder was put together from two runs"
            )
        before, after = adapter.vector(), load_saved(adapter, self.folder.adapter)
        trained = adapter.trainable_entries(1) | adapter.trainable_entries(2)
        return np.where(trained, before, after), after

    def known(self, corpus: Corpus, count: int, seed: int = 0) -> Known:
        """Encode ``count`` records of a corpus, or all where it has fewer."""
        chosen = np.random.default_rng([seed, 0xA0]).permutation(len(corpus.records))[:count]
        indices = sorted(int(i) for i in chosen)
        part = Subset(corpus, tuple(indices))
        features = vision_features(self.scorer.adapter.base, part, self._reporter)[:]
        assert isinstance(features, Tensor)  # images are whole, see above
        said = self._captions(corpus)
        captions = None if said is None else [said[i] for i in indices]
        return Known(part, features, targets(part), captions)

    @cached_property
    def _contexts(self) -> Contexts | None:
        return load_contexts(self.config, self.corpora, self._reporter)

    def _captions(self, corpus: Corpus) -> list[str] | None:
        """Return the captions of one of the run's own splits, where the run has captions."""
        contexts, corpora = self._contexts, self.corpora
        if contexts is None:
            return None
        if corpus is corpora.private:
            return contexts.private
        return contexts.public if corpus is corpora.public else contexts.test

    def outsiders(self, count: int, which: int) -> Corpus:
        """Return records of the members' own distribution that were not trained on.

        ``which`` is 0 for the candidates next to the members, 1 for the population. Drawn scenes use new seeds that no
        split of the run has; from a folder, or with captions, these are the test and the public split.
        """
        data = self.config.data
        if not data.synthetic or self._contexts is not None:
            return self.corpora.public if which else self.corpora.test
        task = "emotic" if data.labels == "auto" else data.labels
        return synthetic_corpus(
            "test",
            count,
            task=task,
            view=data.view,
            seed=data.seed + 2 + which,
            cache=data.cache_dir,
            reporter=self._reporter,
        )

    def losses(self, known: Known, adapter: Vector) -> npt.NDArray[np.float64]:
        """Return the loss of each record at an adapter, shape [records]."""
        held = self.scorer.adapter
        held.load(adapter)
        held.module.eval()
        learner = RecordLosses(self.scorer, known.features, known.targets, known.captions)
        batch = evaluation_batch(self.config)
        with torch.no_grad():
            parts = [
                learner.losses(np.arange(i, min(i + batch, len(learner)))).double().numpy()
                for i in range(0, len(learner), batch)
            ]
        return np.asarray(np.concatenate(parts), np.float64)

    def scores(self, known: Known, adapter: Vector) -> npt.NDArray[np.float64]:
        """Return the label scores of each record at an adapter, shape [records, labels]."""
        self.scorer.adapter.load(adapter)
        scores = self.scorer.all(known.features, evaluation_batch(self.config), known.captions, self._reporter)
        return scores.astype(np.float64)


class RealProbe:
    """The run's own client task on a few of its records; see `conformance.checks.Probe`."""

    def __init__(self, subject: AuditedRun, known: Known) -> None:
        self._subject = subject
        self._known = known
        self.task = ModelTask(
            RecordLosses(subject.scorer, known.features, known.targets, known.captions),
            clipping_of(subject.config, subject.plan),
        )

    def losses(self, indices: npt.NDArray[np.int64], disturbed: int | None) -> npt.NDArray[np.float64]:
        """Return losses in one batch, with the features of one record replaced by noise."""
        features = self._known.features
        if disturbed is not None:
            features = features.clone()
            noise = torch.Generator().manual_seed(0)
            scale = features[disturbed].float().std()
            drawn = torch.randn(features[disturbed].shape, generator=noise) * scale
            features[disturbed] = drawn.to(features.dtype)
        adapter = self._subject.scorer.adapter
        adapter.load(self._subject.tuned)
        adapter.module.train()
        known = self._known
        learner = RecordLosses(self._subject.scorer, features, known.targets, known.captions)
        with torch.no_grad():
            return learner.losses(indices).double().numpy()
