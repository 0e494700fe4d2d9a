"""A small run on planted records: distinctive labels and captions that nobody could guess.

Coins decide which canaries are trained on. Their pictures are drawn scenes, their labels are
random sets, their captions hold a random code. Without protection a model learns them by heart.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carefl_secure.audit.attacks.exposure import label_secrets
from carefl_secure.audit.replay.canary_run import plan_like
from carefl_secure.config import Config
from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec, Simulation
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.federation.server.run import Monitoring, run_federation
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import key_source, label_scorer
from carefl_secure.runs.client_task import ModelTask

__all__ = ["Canaries", "plant", "train_on"]

Vector = npt.NDArray[np.float32]
_CHOSEN = 3
_CODES = 128
_DIGITS = 4
_MICRO_BATCH = 64


@dataclass(frozen=True)
class Canaries:
    """Planted records, in and out, and others of the same kind.

    Parameters
    ----------
    corpus : Corpus
        Canaries first, then the population.
    features : Tensor, shape [records, tokens, width]
    targets : ndarray of float32, shape [records, labels]
    captions : list of str
    label_space : ndarray of bool, shape [sets, labels]
        From which the labels were drawn.
    label_truth : ndarray of int64, shape [records]
    codes : list of str
        From which the captions were drawn.
    code_truth : ndarray of int64, shape [records]
    member : ndarray of bool, shape [canaries]
        The coins.
    """

    corpus: Subset
    features: Tensor
    targets: Vector
    captions: list[str]
    label_space: npt.NDArray[np.bool_]
    label_truth: npt.NDArray[np.int64]
    codes: list[str]
    code_truth: npt.NDArray[np.int64]
    member: npt.NDArray[np.bool_]

    @property
    def count(self) -> int:
        """How many canaries there are, in and out."""
        return len(self.member)

    def learner(self, scorer: LabelScorer, rows: npt.NDArray[np.int64]) -> RecordLosses:
        """Return the learner of some records."""
        said = [self.captions[i] for i in rows.tolist()]
        return RecordLosses(scorer, self.features[rows], self.targets[rows], said)

    def losses(self, scorer: LabelScorer, adapter: Vector, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the loss of some records at an adapter."""
        scorer.adapter.load(adapter)
        scorer.adapter.module.eval()
        learner = self.learner(scorer, rows)
        with torch.no_grad():
            parts = [
                learner.losses(np.arange(i, min(i + 256, len(rows)))).double().numpy()
                for i in range(0, len(rows), 256)
            ]
        return np.asarray(np.concatenate(parts), np.float64)

    def scores(self, scorer: LabelScorer, adapter: Vector, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the label scores of some records at an adapter."""
        scorer.adapter.load(adapter)
        said = [self.captions[i] for i in rows.tolist()]
        return scorer.all(self.features[rows], 256, said).astype(np.float64)

    def code_losses(
        self, scorer: LabelScorer, adapter: Vector, rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the loss of some records under every code, shape [records, codes]."""
        scorer.adapter.load(adapter)
        scorer.adapter.module.eval()
        out = np.empty((len(rows), len(self.codes)))
        for place, row in enumerate(rows.tolist()):
            many = np.full(len(self.codes), row)
            learner = RecordLosses(scorer, self.features[many], self.targets[many], self.codes)
            with torch.no_grad():
                out[place] = learner.losses(np.arange(len(many))).double().numpy()
        return out


def plant(
    config: Config, canaries: int, population: int, reporter: Reporter, seed: int = 0
) -> tuple[LabelScorer, Canaries]:
    """Draw canaries and their population, and load the model that will learn them.

    Parameters
    ----------
    config : Config
        Of the embedded corpus under a label space where several labels may hold.
    canaries : int
        Coins; about half of them are trained on.
    population : int
        Further records of the same kind, never trained on.
    reporter : Reporter
    seed : int
        Of pictures, secrets and coins.

    Raises
    ------
    ConfigError
        If the label space has one label for each record.
    """
    corpus = synthetic_corpus(
        "test",
        canaries + population,
        view=config.data.view if config.data.synthetic else "auto",
        seed=config.data.seed + 7 + seed,
        cache=config.data.cache_dir,
        reporter=reporter,
    )
    if not corpus.space.multi:
        raise ConfigError("secret label sets need a space where several labels may hold: emotic")
    rng = np.random.default_rng([seed, 0x5EC])
    space = label_secrets(len(corpus.space.labels), _CHOSEN)
    drawn = rng.choice(10**_DIGITS, _CODES, replace=False)
    codes = [" ".join(f"{number:0{_DIGITS}d}") for number in drawn.tolist()]
    labels = rng.integers(len(space), size=len(corpus.records))
    spoken = rng.integers(_CODES, size=len(corpus.records))
    scorer = label_scorer(config, corpus.space)
    whole = Subset(corpus, tuple(range(len(corpus.records))))
    return scorer, Canaries(
        whole,
        vision_features(scorer.adapter.base, whole, reporter)[:],
        space[labels].astype(np.float32),
        [codes[i] for i in spoken.tolist()],
        space,
        labels,
        codes,
        spoken,
        rng.random(canaries) < 0.5,
    )


def train_on(
    scorer: LabelScorer, canaries: Canaries, config: Config, initial: Vector, reporter: Reporter
) -> tuple[Vector, RunPlan]:
    """Federate a run on the canaries that are in, all of them in every round.

    Returns
    -------
    ndarray of float32, shape [D]
        The released adapter.
    RunPlan
        What was promised.
    """
    inside = np.flatnonzero(canaries.member)
    clients = config.federation.clients
    # Ceiling: the declared number of records is public and not counted from the coins.
    plan = plan_like(config, len(initial), -(-canaries.count // clients))
    tasks = [
        ModelTask(
            canaries.learner(scorer, share),
            Clipping(plan.privacy.clipping_norm, plan.privacy.normalise, config.privacy.clipping, _MICRO_BATCH),
        )
        for share in np.array_split(inside, clients)
    ]
    with tempfile.TemporaryDirectory(prefix="carefl-planted-") as home:
        result = run_federation(
            RunSpec(
                stage=Stage.only(plan),
                tasks=lambda: tasks,
                folder=RunFolder.create(Path(home), "planted: true\n", "planted"),
                base_hash=bytes(32),
                key_source=key_source(config),
            ),
            initial,
            FedAdam(config.federation.server_lr, config.federation.betas),
            monitoring=Monitoring(reporter=reporter),
            simulation=Simulation(config.dropout, config.run.seed),
        )
    return result.adapter, plan
