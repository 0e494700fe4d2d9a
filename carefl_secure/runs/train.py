"""One whole run: from a configuration to a tuned adapter, its figures and its promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from carefl_secure.config import Config, dump_config
from carefl_secure.errors import AdapterUnmovedError, ConfigError
from carefl_secure.federation.engine import Engine
from carefl_secure.federation.plan.ciphertext_packing import choose_fields
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.run import run_federation
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import (
    base_hash_of,
    client_tasks,
    key_source,
    label_scorer,
    make_optimiser,
    opening,
    run_options,
    run_settings,
    text_scorer,
    trust_words,
)
from carefl_secure.runs.captions import load_contexts
from carefl_secure.runs.evaluation.evaluator import Evaluator, baseline_scores, final_figures
from carefl_secure.runs.plan_from_config import earlier_of, plan_of
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.runs.summary import RunSummary
from carefl_secure.runs.trackers.base import check_trackers

__all__ = ["train"]


def train(
    config: Config,
    reporter: Reporter,
    resume: Path | None = None,
    engine: Callable[[Config, Reporter], Engine] | None = None,
) -> RunSummary:
    """Federate one run and keep it in a folder.

    Whatever stops the run is a `CareflError` with a documented exit code. Nothing is released below
    the floor or above the budget. ``resume`` is the folder of an interrupted run, which then goes
    on; ``config`` must be that run's own. ``engine`` says where the clients are, by default in this
    process.
    """
    started = time.monotonic()
    check_trackers(config.run.trackers)
    if resume is not None and config.unsafe_deterministic_noise and config.stages.spaces:
        raise ConfigError(
            "a resumed run in stages under unsafe_deterministic_noise would repeat its noise; "
            "start anew"
        )
    if config.stages.spaces:
        from carefl_secure.runs.train_staged import train_stages  # which is made of parts of this

        if engine is not None:
            raise ConfigError(
                "a run in stages stays in this process; leave --engine out, or set no stages"
            )
        return train_stages(config, reporter, resume)
    folder = None if resume is None else RunFolder.open(resume)
    corpora = load_corpora(config, reporter)
    contexts = load_contexts(config, corpora, reporter)
    scorer = label_scorer(config, corpora.private.space)
    adapter = scorer.adapter
    initial = adapter.vector()
    plan = plan_of(
        config,
        corpora,
        adapter.dimension,
        earlier_of(config, None if folder is None else folder.run_id),
    )
    if config.federation.aggregation == "encrypted":
        # refused here, before there is a folder
        choose_fields(plan.encoding)
    baselines = baseline_scores(corpora) if config.evaluation.baselines else {}
    evaluate = Evaluator(
        scorer,
        corpora,
        config.performance.evaluation_batch,
        reporter,
        contexts,
        text_scorer(config, scorer),
    )
    before = evaluate(initial)
    reporter.note(opening(plan, corpora, before))
    if folder is None:
        folder = RunFolder.create(config.run.dir, dump_config(config), config.run.name)
    spec = RunSpec(
        plan=plan,
        tasks=lambda: client_tasks(config, plan, scorer, corpora, contexts, reporter),
        folder=folder,
        base_hash=base_hash_of(adapter.base.digest, config),
        key_source=key_source(config, kept=folder.keys),
        **run_settings(config),
    )
    result = run_federation(
        spec,
        initial,
        make_optimiser(config, adapter),
        engine=None if engine is None else engine(config, reporter),
        resume=resume is not None,
        **run_options(config, evaluate, reporter),
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
        baselines=baselines,
        before=before,
        after=final_figures(result.rows[-1], before, evaluate, result.adapter),
        promise=plan.privacy.promise(result.epsilon) + trust_words(config),
        seconds=time.monotonic() - started,
    )
