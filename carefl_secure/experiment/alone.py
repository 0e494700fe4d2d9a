r"""Training without a federation: the references of the parity table.

One party with the adapter, loss, sampling, clipping, number of steps and optimizer of a federated
run. *Local*: a client alone on its own records, without noise, as nothing leaves it.
*Central*: all records at one party; with privacy, DP-SGD with Gaussian noise,

.. math:: g = \Bigl(\sum_{i \in B} \bar g_i + \mathcal N(0, z^2 C^2 I)\Bigr) / (q N)

where every record is in B with probability q on its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carefl_secure.data.records import targets
from carefl_secure.errors import ConfigError
from carefl_secure.experiment.scores import Bench
from carefl_secure.federation.server.optimizers import Listener
from carefl_secure.model.label_scorer import RecordLosses
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.noise import KeyStream, gaussian
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.privacy.sampling import poisson_sample
from carefl_secure.runs.build import key_source, make_optimizer, micro_batch
from carefl_secure.runs.client_task import ModelTask
from carefl_secure.runs.plan_from_config import UNCLIPPED, central_budget
from carefl_secure.runs.prepare import resolved_rate

Vector = npt.NDArray[np.float32]


def train_locally(bench: Bench) -> list[Vector]:
    """Train every client alone on its own records, without noise; return the adapters in order."""
    shares = enumerate(bench.corpora.shares)
    return [_descend(bench, share, 0.0, bench.initial, f"local/{client}") for client, share in shares]


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
    start = bench.initial
    if config.privacy.unit == "none":
        return [_descend(bench, everything, 0.0, start, "central")], None
    if config.privacy.unit != "record":
        raise ConfigError(
            f"a central cell protects single records or nothing, not privacy.unit="
            f"{config.privacy.unit}; set record or none"
        )
    spent = central_budget(config)
    return [_descend(bench, everything, spent.noise_multiplier, start, "central")], spent.epsilon


def _descend(bench: Bench, share: npt.NDArray[np.int64], noise: float, start: Vector, purpose: str) -> Vector:
    """Take ``federation.rounds`` steps from ``start`` on some of the private records."""
    corpora, said, scorer = bench.corpora, bench.contexts, bench.scorer
    config = bench.config
    if config.sums_updates:
        raise ConfigError(
            "a local or central cell takes one step on one gradient at a time, and these settings have clients take "
            "several; set federation.aggregator=fedadam and leave out federation.local_steps"
        )
    if config.server_lr is None:  # the rate of the federated run with these settings
        scorer.adapter.load(start)
        config = resolved_rate(config, scorer, corpora, said, bench.reporter)
    private = config.privacy.unit != "none" and noise > 0
    clip = config.privacy.clipping_norm if private else UNCLIPPED
    features = vision_features(bench.scorer.adapter.base, corpora.private, bench.reporter)
    task = ModelTask(
        RecordLosses(
            bench.scorer,
            features.select(share),
            targets(corpora.private)[share],
            None if said is None else [said.private[i] for i in share.tolist()],
        ),
        Clipping(clip, config.privacy.normalise and private, config.privacy.clipping, micro_batch(config)),
    )
    rate, adapter = config.privacy.sample_rate, start.copy()
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
