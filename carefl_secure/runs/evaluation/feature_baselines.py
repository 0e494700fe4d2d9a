"""Baselines on the frozen vision features: a logistic regression, and the same by DP-SGD at the run's epsilon."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config
from carefl_secure.data.records import Corpus, targets
from carefl_secure.evaluation.baselines import logistic_regression
from carefl_secure.evaluation.figures import Figures
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.model.label_head import HeadLosses, LabelHead
from carefl_secure.model.loader import Base
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.model.vision.tiles import Tiles
from carefl_secure.noise import KeySource, KeyStream, SystemKeySource, gaussian
from carefl_secure.privacy import poisson_sample
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.progress import Reporter
from carefl_secure.runs.plan_from_config import central_budget

_RATE = 0.03
_BATCH = 256


def feature_baselines(
    config: Config, base: Base, train: Corpus, test: Corpus, public: Corpus, reporter: Reporter
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
        features = vision_features(base, corpus, reporter)[:]
        seen[name] = (features.whole() if isinstance(features, Tiles) else features).float().cpu()
    known, truth = targets(train).astype(np.float32), targets(test)
    head = LabelHead(train.space.labels, int(base.processor.image_seq_len), seen["train"].shape[2])
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
    rate, optimizer = config.privacy.sample_rate, FedAdam(_RATE, config.federation.betas)
    point: npt.NDArray[np.float32] = weight.detach().numpy().ravel().copy()
    for number in range(config.federation.rounds):
        drawn = poisson_sample(records, rate, KeyStream(keys.key(f"baseline/{number}/sample")))
        total = clipped_sum(learner.head, learner.parameters(), learner.losses, drawn, clip).vector
        if noise > 0:
            total += gaussian(KeyStream(keys.key(f"baseline/{number}/noise")), len(total), noise * clip.norm)
        point = optimizer.step(point, total / (rate * records))
        learner.step(point)
