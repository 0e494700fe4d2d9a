"""What a configuration sets up: model and scorer, tasks, optimiser, keys, and the agreed hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import carefl_secure
from carefl_secure.config import Config
from carefl_secure.config.root import SAMPLE_RATE
from carefl_secure.data.records import PUBLISHED_SPACES, LabelSpace, targets
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.calibrate import plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import PerformanceFlags, Simulation, system_keys
from carefl_secure.federation.server.optimizers import Alternating, FedAdam, FedAvg, FedDyn, ServerOptimizer
from carefl_secure.federation.server.run import Evaluate, Monitoring
from carefl_secure.model.label_head import base_share
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter, StackedAdapter
from carefl_secure.model.prompts import PromptForm, prompt_template, task_question
from carefl_secure.model.vision.encode import frozen_features
from carefl_secure.model.vision.tiles import whole_pictures
from carefl_secure.noise import DeterministicKeySource, KeySource
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import Reporter
from carefl_secure.runs.captions import Contexts
from carefl_secure.runs.client_task import ModelTask, model_tasks
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.plan_from_config import entries_beside, noise_text, request_of
from carefl_secure.runs.staged_corpora import stage_configs
from carefl_secure.runs.trackers.base import TrackedReporter
from carefl_secure.strict_json import canonical_json

_FITTED, _FITTED_LARGE = 512, 128  # most public records that a label head is fitted to: embedded base, any other
_HEAD_RATE = 0.03  # of Adam, for a label head of any size
NOISY_RATE = 0.0175
"""Rate of Adam for a label head that is trained alone, under noise."""
_HEAD_MOMENTUM = 0.5
_QUIET_RATE, _QUIET_EPS, _WHOLE_EPS = 0.06, 1e-3, 4e-3  # of a head alone without noise; eps in gains of the head,
# the latter where every round draws all records
_RULE = 1.1
ADAPTER_NEEDS = 10.0
"""Signal over noise that noise may leave at most for an adapter to be trained next to a head that reads text."""
_NOISE, _MOST = 2.0, 1.75  # how noise raises the rule's rate, and by how much at most
_GRID = [digit * 10.0**power for power in range(-8, 5) for digit in (1, 3)]


def micro_batch(config: Config) -> int:
    """Return how many records go through the model at once; large models need memory."""
    return config.performance.micro_batch or (64 if config.model.base == "embedded" else 4)


def evaluation_batch(config: Config) -> int:
    """Return how many records are scored at once."""
    return config.performance.evaluation_batch or (64 if config.model.base == "embedded" else 16)


def head_labels(config: Config, space: LabelSpace) -> tuple[str, ...]:
    """Return the labels of the label head, those of all stages of a staged run; empty without a head."""
    if config.head == "none":
        return ()
    spaces = [PUBLISHED_SPACES[name] for name in config.stages.spaces] or [space]
    return tuple(dict.fromkeys(label for one in spaces for label in one.labels))


def label_scorer(config: Config, space: LabelSpace, head: tuple[str, ...] | None = None) -> LabelScorer:
    """Load the base with a fresh adapter (merged stages stack ranks) and a scorer; ``head``: default `head_labels`."""
    stacked = len(config.stages.spaces) if config.stages.handover == "merge" else 1
    base = load_base(
        config.model.base,
        revision=config.model.revision,
        quantization=config.model.quantization,
        compute_dtype=config.model.compute_dtype,
        parallel_batches=config.performance.parallel_batches,
        device=config.model.device,
        feature_cache=config.model.feature_cache,
        form=PromptForm(config.model.end_answers, config.model.image_splitting, config.model.longest_edge),
    )
    adapter = Adapter(
        base,
        rank=config.adapter.rank * stacked,
        alpha=config.adapter.alpha * stacked,
        targets=config.adapter.targets,
        train=config.adapter.train,
        seed=config.adapter.seed,
        last_layers=config.adapter.last_layers,
    )
    labels = head_labels(config, space) if head is None else head
    if labels:
        multi = any(PUBLISHED_SPACES[name].multi for name in config.stages.spaces) or space.multi
        reads = "text" if config.head == "text" else "image"
        adapter.attach_head(labels, noisy=config.privacy.unit != "none", multi=multi, reads=reads)
    if config.performance.gradient_checkpointing:
        adapter.module.activation_checkpointing_enable({"use_reentrant": False})
    return LabelScorer(adapter, space, task_question(config.model.prompt, space))


def clipping_of(config: Config, plan: RunPlan) -> Clipping:
    """Return how the records of a run are clipped."""
    privacy, adaptive = plan.privacy, AdaptiveNorm.of(plan.privacy)
    return Clipping(privacy.clipping_norm, privacy.normalise, config.privacy.clipping, micro_batch(config), adaptive)


def fit_head(
    config: Config, scorer: LabelScorer, corpora: Corpora, contexts: Contexts | None, reporter: Reporter
) -> None:
    """Fit what does not train of the label head, if there is one, to some public records.

    The share of the base's own scores stays 1 under captions, in stages, whose labels differ, and where the vision
    side is tuned, which is to change its scores. Under captions it is 0 where noise would leave little of what the
    adapter learns (`freeze_adapter`).
    """
    adapter, head = scorer.adapter, scorer.adapter.head
    text = head is not None and head.reads == "text"
    if head is None or (text and contexts is None and config.model.context != "none"):
        return
    most = _FITTED if config.model.base == "embedded" else _FITTED_LARGE
    chosen = np.unique(np.linspace(0, len(corpora.public.records) - 1, most).astype(int)).tolist()
    some = Subset(corpora.public, chosen)
    seen = frozen_features(adapter, some, reporter)
    if text:
        said = None if contexts is None else [contexts.public[i] for i in chosen]
        scorer.keep_states(seen, said, reporter)
        head.fit(scorer.states(seen, said))
        freeze_adapter(config, scorer, corpora, reporter)
        return
    head.fit(whole_pictures(seen))
    if config.model.context == "none" and not config.stages.spaces and not adapter.trains_vision:
        share = base_share(scorer.all(seen), targets(some).astype(np.float32), multi=scorer.space.multi)
        head.weigh(share)
        found = (
            f"the base's own scores count {share:.2f} times" if share else "the base's own scores say nothing of them"
        )
        reporter.note(
            f"label head, by {len(chosen)} public records: {found}{'' if share else ', so the head is alone'}"
        )


def freeze_adapter(config: Config, scorer: LabelScorer, corpora: Corpora, reporter: Reporter) -> None:
    r"""Have a head that reads text trained alone where the run's noise is too much for the adapter's many values.

    A mean gradient has norm C, the clipping norm, at most, and T rounds of noise of norm :math:`\nu` each leave a
    signal over noise of :math:`C \sqrt T / \nu` at most. Below :data:`ADAPTER_NEEDS` of it the adapter stays as it is.
    """
    head = scorer.adapter.head
    if head is None or config.privacy.unit == "none":
        return
    # At the default rate, whatever auto becomes: a resumed run, whose rate is known, must decide as it did at first.
    usual = config.model_copy(update={"privacy": config.privacy.model_copy(update={"sample_rate": SAMPLE_RATE})})
    plan = plan_run(request_of(usual, corpora, scorer.adapter.dimension))
    most = plan.privacy.clipping_norm * math.sqrt(plan.privacy.rounds) / plan.lasting_noise_norm(survivors_of(config))
    if most >= ADAPTER_NEEDS:
        return
    head.weigh(0.0)
    reporter.note(
        f"signal/noise of the whole adapter would be {most:.2g} at most, and {ADAPTER_NEEDS:g} is asked for: only the "
        "label head is trained, on what the frozen language model makes of image and caption"
    )


def survivors_of(config: Config) -> int:
    """Return how many clients a round is expected to end with."""
    return config.federation.clients - round(config.dropout * config.federation.clients)


def first_scorer(
    config: Config, corpora: Sequence[Corpora], contexts: Contexts | None, reporter: Reporter
) -> LabelScorer:
    """Return the scorer that a run begins with: of its first stage, with a fitted label head for all stages.

    ``contexts`` are the captions of the last stage.
    """
    space = corpora[0].private.space
    scorer = label_scorer(stage_configs(config)[0], space, head_labels(config, space))
    fit_head(config, scorer, corpora[-1], contexts, reporter)
    return scorer


def grid_rate(value: float) -> float:
    """Return the nearest of 1 and 3 times the powers of ten, on a logarithmic scale."""
    return min(_GRID, key=lambda rate: abs(math.log(rate / value)))


def rule_rate(adapter: Adapter, noise: float = 0.0) -> float:
    """Return the rate of Adam that follows from the size of the text model; a label head alone has its own.

    ``noise`` is the norm of a round's noise over that of its mean gradient: of a step of Adam, so much less is signal.
    """
    if adapter.head is not None and adapter.head.alone:
        return _HEAD_RATE
    text = adapter.base.model.config.text_config
    more = min(_MOST, math.hypot(1.0, noise / _NOISE))
    return grid_rate(more * _RULE / (text.num_hidden_layers * math.sqrt(text.hidden_size)))


def stage_scorer(config: Config, corpora: Sequence[Corpora], stage: Stage, reporter: Reporter) -> LabelScorer:
    """Return the scorer of one of a run's stages; under merge its adapter stands on those of earlier stages.

    What is fitted of the label head comes with the vector of a round.
    """
    adapter: Adapter = first_scorer(config, corpora, None, reporter).adapter
    for count, vector in enumerate(stage.earlier if config.stages.handover == "merge" else (), 1):
        adapter.load(vector)
        adapter = StackedAdapter(adapter, config.adapter.seed + count)
    own = corpora[stage.number - 1].private.space
    return LabelScorer(adapter, own, task_question(config.model.prompt, own))


def client_tasks(
    config: Config,
    plan: RunPlan,
    scorer: LabelScorer,
    corpora: Corpora,
    contexts: Contexts | None,
    reporter: Reporter,
    *,
    pad: bool = False,
) -> list[ModelTask]:
    """Return the task of each client here, in order; ``pad`` or the configuration makes all sums take equal work."""
    if config.data.at_sites and not corpora.shares:
        return []
    return model_tasks(
        scorer,
        corpora,
        clipping_of(config, plan),
        reporter,
        contexts=contexts,
        by_person=config.privacy.unit == "person",
        records_per_person=config.privacy.records_per_person,
        pad_rate=plan.privacy.sample_rate if pad or config.privacy.pad_rounds else None,
    )


def run_options(config: Config, evaluate: Evaluate, reporter: Reporter) -> dict[str, Any]:
    """Return who observes a run, what is simulated in it, and how fast it goes."""
    performance = config.performance
    return {
        "monitoring": Monitoring(
            evaluate, config.evaluation.every, reporter, partial(TrackedReporter, names=config.run.trackers)
        ),
        "simulation": Simulation(config.dropout, config.run.seed),
        "performance": PerformanceFlags(performance.workers, performance.timeout_s),
    }


def head_betas(config: Config) -> tuple[float, float]:
    """Return Adam's decay rates for a head alone: a long average would leave part of the last rounds unused."""
    first, second = config.federation.betas
    return min(first, _HEAD_MOMENTUM), second


def make_optimizer(config: Config, adapter: Adapter, finished: int = 0) -> ServerOptimizer:
    """Return the server's step after some finished rounds; one per half where halves alternate."""

    def make(mask: npt.NDArray[np.bool_]) -> ServerOptimizer:
        federation, rate = config.federation, config.server_lr
        if federation.aggregator == "feddyn":
            return FedDyn(federation.feddyn_alpha)
        if rate is None:
            raise ConfigError("federation.server_lr=auto is not resolved; call prepare, or give a number")
        if federation.aggregator == "fedadam":
            return FedAdam(rate, betas, eps, noise_correction=federation.noise_correction, scale=scale[mask])
        return FedAvg(rate, federation.momentum if federation.aggregator == "fedavg" else 0.0)

    masks = [adapter.trainable_entries(number) for number in ((1, 2) if adapter.train == "alternate" else (1,))]
    head, own, eps, betas = adapter.head, _HEAD_RATE, 1e-8, config.federation.betas
    if head is not None and head.alone:
        betas = head_betas(config)
        # Small entries of an exact gradient are not noise: they take small steps, as in plain descent.
        quiet = _WHOLE_EPS if config.privacy.sample_rate == 1 else _QUIET_EPS
        own, eps = (_QUIET_RATE, quiet * head.gain) if config.privacy.unit == "none" else (NOISY_RATE, eps)
    scale = np.where(adapter.head_entries(), own / rule_rate(adapter), 1.0)
    return make(masks[0]) if masks[0].all() else Alternating([(make(mask), mask) for mask in masks], finished)


def key_source(config: Config, stage: str = "", kept: Path | None = None) -> Callable[[int], KeySource]:
    """Return the source of every client's keys: the system's entropy unless tests set a seed.

    Predictable keys follow from seed, stage and client, so no stage repeats another's. The folder
    ``kept`` records which were drawn, so that a resumed run repeats none.
    """
    if not config.unsafe_deterministic_noise:
        return system_keys
    seed = f"{config.run.seed}{stage and '/' + stage}".encode()

    def source(index: int) -> KeySource:
        keys = DeterministicKeySource(seed + b"/" + str(index).encode())
        return keys if kept is None else KeptKeys(keys, kept / f"{index}.log")

    return source


def base_hash_of(digest: bytes, config: Config, stage: Stage | None = None) -> bytes:
    """Hash what all parties must share besides the plan: base weights, adapter, code version.

    SHA-256 over the digest of the weights and canonical JSON, independent of the order of settings.
    A named stage adds the whole agreement, and what of earlier stages is frozen under it.
    """
    # Where a client computes, and keeps what it derives, is its own affair; of a prompt the words count.
    own = {"context_cache", "device", "feature_cache", "prompt"}
    model = config.model.model_dump(mode="json", exclude=own)
    agreed: dict[str, Any] = {
        "version": carefl_secure.__version__,
        "model": {**model, "prompt": prompt_template(config.model.prompt)},
        "adapter": config.adapter.model_dump(mode="json"),
    }
    if stage is not None and stage.name:
        agreed["stage"] = {"name": stage.name, "plan": stage.digest}
        agreed["stages"] = config.stages.model_dump(mode="json")
        if config.stages.handover == "merge":
            frozen = [hashlib.sha256(one.tobytes()).hexdigest() for one in stage.earlier]
            agreed["stage"]["frozen"] = frozen
    return hashlib.sha256(digest + canonical_json(agreed)).digest()


def opening(config: Config, plan: RunPlan, corpora: Corpora, before: Mapping[str, float]) -> str:
    """Return the sentence a run begins with."""
    everybody = "; every client is needed in every round" * (plan.privacy.min_survivors == plan.privacy.clients)
    records = len(corpora.private.records) or f"{plan.privacy.public_records} declared"
    values = plan.encoding.dimension - entries_beside(config)
    return (
        f"{records} private records at {plan.privacy.clients} clients, {values} trainable values, "
        f"{plan.encoding.bits} bits each; {noise_text(config, plan)}; untuned mAP {before['mAP']:.3f}{everybody}"
    )


class KeptKeys:
    """Keys from a seed, continued where an earlier process stopped; only tests have a seed.

    ``source`` is at its beginning; the file ``path`` has one line, the label, per key that was drawn.

    Guarantees
    ----------
    A key is noted before it is handed out, so no process hands out a key that another one did; a
    run that was stopped between two rounds goes on with the keys that it would have had.
    """

    def __init__(self, source: DeterministicKeySource, path: Path) -> None:
        self._source = source
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for label in path.read_text().splitlines() if path.exists() else ():
            source.key(label)

    def key(self, label: str) -> bytes:
        """Return the next key under ``label``."""
        with self._path.open("a") as file:
            file.write(label + "\n")
        return self._source.key(label)
