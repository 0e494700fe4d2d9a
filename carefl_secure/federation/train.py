"""One whole run: from a configuration to a tuned adapter, its figures and its promise."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import carefl_secure
from carefl_secure.config import Config, dump_config
from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import AdapterUnmovedError, ConfigError
from carefl_secure.federation.contexts import load_contexts
from carefl_secure.federation.corpora import Corpora, load_corpora
from carefl_secure.federation.fields import choose_fields
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.learning import Evaluator, baseline_floors, model_tasks
from carefl_secure.federation.optim import Alternating, FedAdam, FedAvg, ServerOptimizer
from carefl_secure.federation.planning import RunPlan, plan_run
from carefl_secure.federation.rounds import run_federation
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.learner import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.noise import DeterministicKeySource, KeySource, SystemKeySource
from carefl_secure.progress import Reporter

__all__ = ["RunSummary", "key_source", "label_scorer", "train"]

_QUESTION = "Which expression does the person show?"
_TRUST = {
    "committee": " It also needs one member of the committee that does not side with the server.",
    "encrypt": " It holds even if the holder of the key sides with the server.",
}
_UNCLIPPED = 1e3  # far above any record's gradient: without privacy nothing is to be cut


@dataclass(frozen=True)
class RunSummary:
    """What a finished run tells.

    Parameters
    ----------
    folder : Path
        The run folder.
    rows : sequence of mapping
        Figures of every round.
    floors : mapping
        Test mAP of the simple baselines; empty where switched off.
    before, after : mapping
        ``mAP`` and ``macro_f1`` of the untuned and the tuned model on the test split.
    promise : str
        The privacy sentence.
    seconds : float
        Wall time.
    """

    folder: Path
    rows: Sequence[Mapping[str, float | int | str]]
    floors: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    promise: str
    seconds: float


def train(config: Config, reporter: Reporter, resume: Path | None = None) -> RunSummary:
    """Federate one run in this process and keep it in a folder.

    Parameters
    ----------
    config : Config
    reporter : Reporter
    resume : Path, optional
        Folder of an interrupted run, which then goes on; ``config`` must be that run's own.

    Returns
    -------
    RunSummary

    Raises
    ------
    CareflError
        Whatever stops the run; its exit code is documented. Nothing is released below the floor
        or above the budget.
    """
    started = time.monotonic()
    if resume is not None and config.unsafe_deterministic_noise:
        raise ConfigError(
            "a resumed run under unsafe_deterministic_noise would repeat its noise; start anew"
        )
    folder = None if resume is None else RunFolder.open(resume)
    corpora = load_corpora(config, reporter)
    contexts = load_contexts(config, corpora, reporter)
    scorer = label_scorer(config, corpora.private.space)
    adapter = scorer.adapter
    initial = adapter.vector()
    plan = _plan(config, corpora, adapter.dimension)
    if config.federation.aggregation == "encrypt":
        choose_fields(plan.encoding)  # refused here, before there is a folder
    baselines = baseline_floors(corpora) if config.evaluation.floors else {}
    evaluate = Evaluator(scorer, corpora, config.evaluation.batch, reporter, contexts)
    before = evaluate(initial)
    reporter.note(_opening(plan, corpora, before))
    tasks = model_tasks(
        scorer,
        corpora,
        clipping_norm=plan.privacy.clipping_norm,
        normalise=plan.privacy.normalise,
        engine=config.privacy.clipping,
        micro_batch=_micro_batch(config),
        reporter=reporter,
        contexts=contexts,
    )
    if folder is None:
        folder = RunFolder.create(config.run.dir, dump_config(config), config.run.name)
    result = run_federation(
        plan,
        tasks,
        initial,
        optimiser=_optimiser(config, adapter),
        folder=folder,
        base_hash=_base_hash(adapter.base.digest, config),
        evaluate=evaluate,
        evaluate_every=config.evaluation.every,
        reporter=reporter,
        key_source=key_source(config),
        dropout=config.federation.dropout,
        seed=config.run.seed,
        workers=config.federation.workers,
        ledgers=config.privacy.ledgers,
        max_epsilon=config.privacy.max_epsilon,
        aggregation=config.federation.aggregation,
        committee_members=config.federation.committee_members,
        resume=resume is not None,
    )
    if np.array_equal(result.adapter, initial):
        raise AdapterUnmovedError(
            f"after {plan.privacy.rounds} rounds the adapter is what it was at the start; "
            "raise federation.server_lr or federation.rounds, and check that the records have "
            "labels the model can tell apart"
        )
    adapter.load(result.adapter)
    adapter.save(folder.adapter)
    return RunSummary(
        folder=folder.path,
        rows=result.rows,
        floors=baselines,
        before=before,
        after=evaluate(result.adapter),
        promise=plan.privacy.promise(result.epsilon)
        + _TRUST.get(config.federation.aggregation, ""),
        seconds=time.monotonic() - started,
    )


def _micro_batch(config: Config) -> int:
    """Return how many records go through the model at once; the large ones want memory."""
    return config.federation.micro_batch or (128 if config.model.base == "embedded" else 4)


def label_scorer(config: Config, space: LabelSpace) -> LabelScorer:
    """Load the base of a configuration, give it a fresh adapter, and set it on a label space."""
    base = load_base(
        config.model.base,
        revision=config.model.revision,
        quantization=config.model.quantization,
        compute_dtype=config.model.compute_dtype,
    )
    adapter = Adapter(
        base,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=config.adapter.targets,
        train=config.adapter.train,
        seed=config.adapter.seed,
        last_layers=config.adapter.last_layers,
    )
    return LabelScorer(adapter, space, QUESTIONS.get(space.name, _QUESTION))


def _plan(config: Config, corpora: Corpora, dimension: int) -> RunPlan:
    private = config.privacy.unit != "none"
    records = len(corpora.private.records)
    if private and config.privacy.delta >= 1 / records:
        raise ConfigError(
            f"privacy.delta={config.privacy.delta:g} is not below one over the {records} private "
            f"records, which would allow one record to be published whole; set privacy.delta "
            f"below {1 / records:.2g}"
        )
    return plan_run(
        unit=config.privacy.unit,
        dimension=dimension,
        clients=config.federation.clients,
        rounds=config.federation.rounds,
        public_records=records,
        sample_rate=config.privacy.sample_rate,
        clipping_norm=config.privacy.clipping_norm if private else _UNCLIPPED,
        delta=config.privacy.delta,
        target_epsilon=config.privacy.epsilon if private else None,
        min_survivors=config.federation.floor,
        max_colluders=config.privacy.max_colluders,
        normalise=config.privacy.normalise and private,
    )


def _optimiser(config: Config, adapter: Adapter) -> ServerOptimizer:
    def make() -> ServerOptimizer:
        rate = config.federation.server_lr
        if config.federation.aggregator == "fedavg":
            return FedAvg(rate, config.federation.momentum)
        return FedAdam(rate, config.federation.betas)

    return Alternating(make(), make(), adapter.mask(1)) if adapter.train == "alternate" else make()


def key_source(config: Config) -> Callable[[int], KeySource]:
    """Return what gives every client its keys: the system's entropy unless tests ask otherwise."""
    if not config.unsafe_deterministic_noise:
        return lambda index: SystemKeySource()
    seed = f"{config.run.seed}".encode()
    return lambda index: DeterministicKeySource(seed + b"/" + str(index).encode())


def _base_hash(digest: bytes, config: Config) -> bytes:
    """Hash what all parties must share besides the plan: base weights, adapter, code version."""
    # Where a client keeps its captions is its own affair.
    model = config.model.model_copy(update={"context_cache": None})
    text = f"{carefl_secure.__version__}\n{model!r}\n{config.adapter!r}"
    return hashlib.sha256(digest + text.encode()).digest()


def _opening(plan: RunPlan, corpora: Corpora, before: Mapping[str, float]) -> str:
    noise = (
        f"noise multiplier {plan.noise_multiplier:.3f} for epsilon "
        f"{plan.privacy.target_epsilon:g} over {plan.privacy.rounds} rounds"
        if plan.protected
        else "NO PRIVACY: privacy.unit is none"
    )
    return (
        f"{len(corpora.private.records)} private records at {plan.privacy.clients} clients, "
        f"{plan.encoding.dimension} trainable values, {plan.encoding.bits} bits each; {noise}; "
        f"untuned mAP {before['mAP']:.3f}"
    )
