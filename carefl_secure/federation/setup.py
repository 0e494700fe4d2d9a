"""What a configuration sets up: model and scorer, plan, optimiser, keys, and the agreed hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import carefl_secure
from carefl_secure.config import Config
from carefl_secure.data.people import people
from carefl_secure.data.records import LabelSpace
from carefl_secure.errors import ConfigError
from carefl_secure.federation.contexts import Contexts, load_contexts
from carefl_secure.federation.corpora import Corpora, load_corpora
from carefl_secure.federation.earlier import History, earlier_spends
from carefl_secure.federation.feddyn import FedDyn
from carefl_secure.federation.learning import ModelTask, model_tasks
from carefl_secure.federation.optim import Alternating, FedAdam, FedAvg, ServerOptimizer
from carefl_secure.federation.planning import LocalPlan, RunPlan, plan_run
from carefl_secure.federation.task import LocalTask
from carefl_secure.model.generation import TextScorer
from carefl_secure.model.learner import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.task_prompts import prompt_template, task_question
from carefl_secure.noise import DeterministicKeySource, KeySource, SystemKeySource
from carefl_secure.privacy.promise import aggregation_text
from carefl_secure.progress import Reporter

__all__ = [
    "UNCLIPPED",
    "base_hash_of",
    "client_tasks",
    "counted",
    "earlier_of",
    "key_source",
    "label_scorer",
    "local_plan",
    "make_optimiser",
    "micro_batch",
    "opening",
    "plan_of",
    "plan_settings",
    "plan_with",
    "run_settings",
    "site_work",
    "text_scorer",
    "trust_words",
]

UNCLIPPED = 1e3
"""Far above the norm of any record's gradient: without privacy nothing is to be cut."""


def text_scorer(config: Config, scorer: LabelScorer) -> TextScorer | None:
    """Return what reads the model's own words; None where likelihoods of labels decide."""
    if config.evaluation.scorer == "labels":
        return None
    return TextScorer(scorer, constrained=config.evaluation.constrained)


def earlier_of(config: Config, run: str | None) -> frozenset[History]:
    """Return what the clients' ledgers hold of other runs, where a limit over all runs is set."""
    privacy = config.privacy
    if privacy.ledgers is None or privacy.max_epsilon is None or privacy.unit == "none":
        return frozenset()
    return earlier_spends(privacy.ledgers, config.federation.clients, run)


def trust_words(config: Config) -> str:
    """Return what the privacy sentence rests on beside the peers."""
    said = aggregation_text(
        config.federation.aggregation,
        encryption=config.federation.encryption,
        committee_spare=config.federation.committee_spare,
    )
    return f" {said}" if said else ""


def micro_batch(config: Config) -> int:
    """Return how many records go through the model at once; the large ones want memory."""
    return config.federation.micro_batch or (128 if config.model.base == "embedded" else 4)


def label_scorer(config: Config, space: LabelSpace) -> LabelScorer:
    """Load the base of a configuration, give it a fresh adapter, and set it on a label space.

    The adapter has the shape of what a finished run saves: stages that are merged stack their
    ranks.
    """
    stacked = len(config.stages.spaces) if config.stages.handover == "merge" else 1
    base = load_base(
        config.model.base,
        revision=config.model.revision,
        quantization=config.model.quantization,
        compute_dtype=config.model.compute_dtype,
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
    return LabelScorer(adapter, space, task_question(config.model.prompt, space))


def plan_of(
    config: Config, corpora: Corpora, dimension: int, earlier: frozenset[History] = frozenset()
) -> RunPlan:
    """Return the plan that follows from a configuration; the same at every party."""
    declared = config.federation.public_records
    if declared is not None:
        return plan_with(config, declared, dimension, earlier=earlier)
    many, held = counted(config, corpora)
    return plan_with(config, many, dimension, held, earlier)


def counted(config: Config, corpora: Corpora) -> tuple[int, int]:
    """Count the units that are sampled, records or persons, and the records."""
    held = corpora.private.records
    return (len(people(held)) if config.privacy.unit == "person" else len(held)), len(held)


def plan_with(
    config: Config,
    public_records: int,
    dimension: int,
    records: int | None = None,
    earlier: frozenset[History] = frozenset(),
) -> RunPlan:
    """Return the plan for a declared number of records (persons), without looking at any."""
    return plan_run(
        **plan_settings(config, public_records, dimension, records),
        limit=config.privacy.max_epsilon if earlier else None,
        earlier=earlier,
    )


def plan_settings(
    config: Config, public_records: int, dimension: int, records: int | None = None
) -> dict[str, Any]:
    """Return what `plan_run` needs of a configuration."""
    privacy = config.privacy
    private = privacy.unit != "none"
    records = public_records if records is None else records
    if private and privacy.delta >= 1 / records:
        raise ConfigError(
            f"privacy.delta={privacy.delta:g} is not below one over the {records} private "
            f"records, which would allow one record to be published whole; set privacy.delta "
            f"below {1 / records:.2g}"
        )
    return {
        "unit": privacy.unit,
        "trust": privacy.trust,
        "records_per_person": privacy.records_per_person,
        "local": local_plan(config),
        "dimension": dimension,
        "clients": config.federation.clients,
        "rounds": config.federation.rounds,
        "public_records": public_records,
        "sample_rate": 1.0 if privacy.unit == "client" else privacy.sample_rate,
        "clipping_norm": config.privacy.clipping_norm if private else UNCLIPPED,
        "delta": config.privacy.delta,
        "target_epsilon": config.privacy.epsilon if private else None,
        "min_survivors": config.federation.floor,
        "max_colluders": config.privacy.max_colluders,
        "normalise": config.privacy.normalise and private,
    }


def site_work(
    config: Config, index: int | None, reporter: Reporter
) -> tuple[RunPlan, bytes, LocalTask]:
    """Return plan, base hash and task of one site, which computes all three itself.

    Parameters
    ----------
    config : Config
        With the site's own ``data.source``.
    index : int or None
        The client whose share of the records this is; None where all of them are the site's.
    reporter : Reporter
    """
    if config.stages.spaces:
        raise ConfigError("a run in stages stays in one process; a site takes part in one stage")
    corpora = load_corpora(config, reporter)
    if index is None:
        whole = [np.arange(len(corpora.private.records), dtype=np.int64)]
        corpora, index = dataclasses.replace(corpora, shares=whole), 0
    contexts = load_contexts(config, corpora, reporter)
    scorer = label_scorer(config, corpora.private.space)
    adapter = scorer.adapter
    plan = plan_of(config, corpora, adapter.dimension)
    tasks = client_tasks(config, plan, scorer, corpora, contexts, reporter)
    return plan, base_hash_of(adapter.base.digest, config), tasks[index]


def client_tasks(
    config: Config,
    plan: RunPlan,
    scorer: LabelScorer,
    corpora: Corpora,
    contexts: Contexts | None,
    reporter: Reporter,
) -> list[ModelTask]:
    """Return what every client computes with under a plan, in the order of the clients."""
    return model_tasks(
        scorer,
        corpora,
        clipping_norm=plan.privacy.clipping_norm,
        normalise=plan.privacy.normalise,
        engine=config.privacy.clipping,
        micro_batch=micro_batch(config),
        reporter=reporter,
        contexts=contexts,
        by_person=config.privacy.unit == "person",
        records_per_person=config.privacy.records_per_person,
    )


def run_settings(config: Config) -> dict[str, Any]:
    """Return what `run_federation` takes from a configuration alone."""
    federation, privacy = config.federation, config.privacy
    return {
        "evaluate_every": config.evaluation.every,
        "dropout": federation.dropout,
        "seed": config.run.seed,
        "workers": federation.workers,
        "ledgers": privacy.ledgers,
        "max_epsilon": privacy.max_epsilon,
        "aggregation": federation.aggregation,
        "committee_members": federation.committee_members,
        "committee_spare": federation.committee_spare,
        "encryption": federation.encryption,
    }


def local_plan(config: Config) -> LocalPlan | None:
    """Return the local steps of a configuration; None where clients release sums of gradients."""
    federation = config.federation
    if not config.sums_moves:
        return None
    rule = federation.aggregator
    return LocalPlan(
        steps=config.local_steps,
        learning_rate=config.local_lr,
        batch_share=config.privacy.sample_rate,
        proximal_mu=federation.proximal_mu if rule == "fedprox" else 0.0,
        feddyn_alpha=federation.feddyn_alpha if rule == "feddyn" else 0.0,
        stragglers=federation.stragglers,
        seed=config.run.seed,
    )


def make_optimiser(config: Config, adapter: Adapter) -> ServerOptimizer:
    """Return the server's step; one for each half where the halves of the adapter take turns."""

    def make() -> ServerOptimizer:
        federation, rate = config.federation, config.server_lr
        if federation.aggregator == "feddyn":
            return FedDyn(federation.feddyn_alpha)
        if federation.aggregator == "fedadam":
            return FedAdam(rate, federation.betas, noise_correction=federation.noise_correction)
        return FedAvg(rate, federation.momentum if federation.aggregator == "fedavg" else 0.0)

    return Alternating(make(), make(), adapter.mask(1)) if adapter.train == "alternate" else make()


def key_source(config: Config, stage: str = "") -> Callable[[int], KeySource]:
    """Return what gives every client its keys: the system's entropy unless tests ask otherwise.

    Keys that tests can predict follow from seed, stage and client, so no stage repeats another's.
    """
    if not config.unsafe_deterministic_noise:
        return lambda index: SystemKeySource()
    seed = f"{config.run.seed}{stage and '/' + stage}".encode()
    return lambda index: DeterministicKeySource(seed + b"/" + str(index).encode())


def base_hash_of(digest: bytes, config: Config) -> bytes:
    """Hash what all parties must share besides the plan: base weights, adapter, code version."""
    # Where a client keeps its captions is its own affair; of a prompt the words count.
    words = prompt_template(config.model.prompt)
    model = config.model.model_copy(update={"context_cache": None, "prompt": words})
    text = f"{carefl_secure.__version__}\n{model!r}\n{config.adapter!r}"
    return hashlib.sha256(digest + text.encode()).digest()


def opening(plan: RunPlan, corpora: Corpora, before: Mapping[str, float]) -> str:
    """Return the sentence a run begins with."""
    noise = (
        f"noise multiplier {plan.noise_multiplier:.3f} for epsilon "
        f"{plan.privacy.target_epsilon:g} over {plan.privacy.rounds} rounds"
        if plan.protected
        else "NO PRIVACY: privacy.unit is none"
    )
    loud = ""
    hidden, most = plan.noise_norm(plan.privacy.clients), plan.privacy.clipping_norm
    if plan.privacy.unit == "client" and hidden > 10 * most:
        loud = (
            f"; the noise in the mean move has norm {hidden:.3g} and the move itself {most:g} at "
            "most, so little will be learnt: invite more clients, or protect persons or records"
        )
    return (
        f"{len(corpora.private.records)} private records at {plan.privacy.clients} clients, "
        f"{plan.encoding.dimension} trainable values, {plan.encoding.bits} bits each; {noise}; "
        f"untuned mAP {before['mAP']:.3f}{loud}"
    )
