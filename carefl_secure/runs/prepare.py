"""What a run does on public records before its first round, and what becomes of the model's language after its last.

All of it is kept in ``preparation.json`` in the run folder, for the report. Nothing here reads a private record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from carefl_secure.config import Config
from carefl_secure.errors import RunError, UnconfirmedError
from carefl_secure.federation.plan.calibrate import plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.model.generation import perplexity
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.runs.build import first_scorer, rule_rate
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.client_task import ModelTask
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.forecast import forecast, public_task
from carefl_secure.runs.pilot import Rate, choose_rate, simulate
from carefl_secure.runs.plan_from_config import noise_text, request_of
from carefl_secure.runs.sample_rate import resolve_sample_rate
from carefl_secure.runs.staged_corpora import load_stages, stage_configs
from carefl_secure.strict_json import load_json

WRECKED = 1.5
"""Perplexity on plain English, over that before training, from which a model's language counts as damaged."""

_SPEAKS = 300.0  # a base of a higher perplexity has no language that could be damaged
_WARM_ROUNDS, _WARM_BATCH, _WARM_SHARE = 20, 64, 0.4
_TASK = "warm start on public records"


def prepare(
    config: Config,
    plan: RunPlan,
    scorer: LabelScorer,
    corpora: Corpora,
    contexts: Contexts | None,
    reporter: Reporter,
    confirm: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Forecast, have a run of noise confirmed, resolve the rate, warm the adapter up; return what is recorded.

    Without ``confirm`` a run that is nearly all noise goes on with a note; `UnconfirmedError` where it returns False.
    """
    before, task = perplexity(scorer.adapter), public_task(config, plan, scorer, corpora, contexts, reporter)
    found = forecast(config, plan, task)
    said = found.sentence()
    reporter.note(said)
    if found.lost and confirm is not None and not confirm(said):
        raise UnconfirmedError(f"{said}. Nothing was spent. Change the settings, or give --yes to run all the same")
    rate, warm = _begin(config, plan, task, found.update, reporter)
    for sentence in filter(None, (rate.sentence, warm)):
        reporter.note(sentence)
    record = {"forecast": found.to_json(), "server_lr": asdict(rate), "warm_start": warm}
    language = {"before": before if math.isfinite(before) else None, "after": None, "sentence": ""}
    return {**record, "language": language}


def plan_only(config: Config, reporter: Reporter) -> dict[str, Any]:
    """Return budget, plan and forecast of a run without the run; of several stages, of the first alone."""
    every = load_stages(config, reporter)
    corpora, contexts = every[0], load_contexts(stage_configs(config)[0], every[0], reporter)
    scorer = first_scorer(config, every, contexts, reporter)
    config, sampling = resolve_sample_rate(config, corpora, scorer.adapter)
    one = stage_configs(config)[0]
    plan = plan_run(request_of(one, corpora, scorer.adapter.dimension))
    found = forecast(one, plan, public_task(one, plan, scorer, corpora, contexts, reporter))
    parts = (f"{scorer.adapter.dimension} trained values", noise_text(one, plan), sampling)
    return {"budget": "; ".join(filter(None, parts)), "plan": plan.to_json(), "forecast": found.to_json()}


def begin_as_federated(
    config: Config, scorer: LabelScorer, corpora: Corpora, contexts: Contexts | None, reporter: Reporter
) -> Config:
    """Bring the adapter to where a federated run with these settings would begin; return them with its rate."""
    plan = plan_run(request_of(config, corpora, scorer.adapter.dimension))
    task = public_task(config, plan, scorer, corpora, contexts, reporter)
    rate, _ = _begin(config, plan, task, forecast(config, plan, task).update, reporter)
    return config.with_server_lr(rate.server_lr)


def write_record(folder: RunFolder, record: dict[str, Any]) -> None:
    """Keep what was recorded."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_atomically(folder.path / "preparation.json", text.encode())


def read_record(folder: RunFolder) -> dict[str, Any]:
    """Return what an interrupted run recorded at its start."""
    path = folder.path / "preparation.json"
    try:
        record: dict[str, Any] = load_json(path.read_text(encoding="utf-8"))
        float(record["server_lr"]["server_lr"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}; restore it from a copy, or start the run again") from error
    return record


def close_record(folder: RunFolder, config: Config, record: dict[str, Any], after: float) -> list[str]:
    """Record the perplexity after the last round; return what must be said of the model's language."""
    before = record["language"]["before"]
    said = language_sentence(config, math.inf if before is None else before, after)
    language = {"before": before, "after": after if math.isfinite(after) else None, "sentence": said}
    write_record(folder, {**record, "language": language})
    return [said] if said else []


def language_sentence(config: Config, before: float, after: float) -> str:
    """Say what training did to the model's language; nothing of a base that has none, as the embedded model."""
    if config.model.base == "embedded" or not before < _SPEAKS:
        return ""
    ratio = after / before
    text = f"perplexity on plain English: {before:.4g} before training, {after:.4g} after ({ratio:.3g} times)"
    if ratio < WRECKED:
        return text
    return (
        f"WARNING: training damaged the model's language; {text}, and at most {WRECKED:g} times is accepted. Do not "
        "use this adapter: lower federation.server_lr or federation.rounds"
    )


def _begin(config: Config, plan: RunPlan, task: ModelTask, update: float, reporter: Reporter) -> tuple[Rate, str]:
    """Resolve the rate and warm the adapter up; return the rate, and what to say of a warm start."""
    rate, head = choose_rate(config, plan, task, update, reporter), task.losses.scorer.adapter.head
    large = config.model.base != "embedded" and plan.local is None
    alone, asked = head is not None and head.alone, config.adapter.warm_start
    warm = asked == "public" or (asked == "auto" and (alone or large))
    return rate, _warm_up(config, task, reporter) if warm else ""


def _warm_up(config: Config, task: ModelTask, reporter: Reporter) -> str:
    """Tune the adapter on public records without noise and go part of the way; return what to say of it."""
    adapter = task.losses.scorer.adapter
    batch = task.records if adapter.head is not None and adapter.head.alone else min(_WARM_BATCH, task.records)
    start, size = adapter.vector(), (min(_WARM_ROUNDS, config.federation.rounds), batch)
    known = replace(task, clipping=replace(task.clipping, normalise=False, norm=1e3))
    adam = {"noise_correction": False, "aggregator": "fedadam", "server_lr": rule_rate(adapter)}
    free = config.model_copy(update={"federation": config.federation.model_copy(update=adam)})
    reporter.start(_TASK, size[0])
    reached = simulate(free, known, np.arange(task.records), size, 0.0, done=lambda: reporter.advance(_TASK))
    reporter.finish(_TASK)
    adapter.load(np.asarray(start + _WARM_SHARE * (reached - start), np.float32))
    moved = float(np.linalg.norm(adapter.vector() - start))
    return (
        f"warm start: {_WARM_SHARE:.0%} of what {size[0]} rounds of {size[1]} out of {task.records} public records "
        f"reach without noise, {moved:.3g} in norm; the promise covers private records and is unchanged"
    )
