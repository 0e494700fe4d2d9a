"""One run from a configuration: a folder, one promise, and one stage or several.

Stages train on the same records under other labels. All plans are fixed before the first round
(`plan_stages`), and all rounds share the same ledgers, which hold the sum to the run's one target.
Stages differ in the name and the plan that their rounds are agreed on, so no context, mask or key
is shared. A plain run is a run of one stage without a name.

Handover. *carry*: the next stage goes on with the same adapter, under a fresh optimizer. *restart*:
it begins with the fresh adapter that the first began with. *merge*: the adapter is frozen, a fresh
one is trained on top, and they are saved as one (`StackedAdapter`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config, dump_config, load_config
from carefl_secure.config.load import with_sha256
from carefl_secure.errors import AdapterUnmovedError, RunError
from carefl_secure.federation.plan.calibrate import plan_stages
from carefl_secure.federation.plan.staged import StagedPlan
from carefl_secure.federation.run_spec import Engine, RunSpec
from carefl_secure.federation.server.optimizers import AdaptiveClipping
from carefl_secure.federation.server.run import FederationResult, run_federation
from carefl_secure.federation.server.sum_guard import SumGuard
from carefl_secure.model.generation import TextScorer, perplexity
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.lora import Adapter, StackedAdapter
from carefl_secure.model.prompts import task_question
from carefl_secure.model.vision.tiles import image_cost
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import Interrupted, RunFolder, check_start, new_run_id
from carefl_secure.runs import build
from carefl_secure.runs.captions import load_contexts
from carefl_secure.runs.evaluation.evaluator import Evaluator, baseline_scores, feature_baselines, final_figures
from carefl_secure.runs.plan_from_config import aggregation_of, earlier_of, request_of
from carefl_secure.runs.prepare import close_record, prepare, read_record, write_record
from carefl_secure.runs.sample_rate import resolve_sample_rate
from carefl_secure.runs.saved_model.task import describe_task, write_card, write_task
from carefl_secure.runs.staged_corpora import load_stages, stage_configs
from carefl_secure.runs.summary import RunSummary, StageSummary
from carefl_secure.runs.trackers.base import check_trackers
from carefl_secure.secagg.encrypted.packing import choose_fields

Vector = npt.NDArray[np.float32]


def train(
    config: Config,
    reporter: Reporter,
    resume: Path | None = None,
    engine: Callable[[Config, Reporter], Engine] | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> RunSummary:
    """Federate one run and keep it in a folder.

    ``resume`` is the folder of an interrupted run; ``config`` must be its own. ``engine`` says where the clients are,
    by default in this process; it is asked once for each stage. ``confirm`` is asked about a run that is forecast to
    be nearly all noise, before anything is spent; without it such a run goes on with a note. What stops the run is a
    `CareflError`; nothing is released by too few survivors or above the budget.

    Guarantees
    ----------
    All rounds of all stages together cost at most the configured epsilon, by the server's ledger
    and by every client's, resumptions included: a round that was charged and lost is not run again.
    """
    check_trackers(config.run.trackers)
    name = config.run.name or new_run_id()
    path = config.run.dir / name if resume is None else resume
    check_start(path, resume=resume is not None)
    reporter.note(f"run folder: {path}")
    try:
        with ExitStack() as held:
            if resume is not None:
                held.enter_context(RunFolder.open(path).held())
            run = _Run(config, reporter, path, engine, resume is not None, confirm)
            return run.run(held)
    except KeyboardInterrupt as stop:
        raise Interrupted(path, resumable=RunFolder(path).checkpoint.is_file()) from stop


class _Run:
    """All stages of one run."""

    def __init__(
        self,
        config: Config,
        reporter: Reporter,
        path: Path,
        engine: Callable[[Config, Reporter], Engine] | None,
        resume: bool,
        confirm: Callable[[str], bool] | None,
    ) -> None:
        self._started, self._confirm = time.monotonic(), confirm
        self._config, self._reporter, self._resume = config, reporter, resume
        self._engine = None if engine is None else engine(config, reporter)
        self._folder = RunFolder(path)
        self._corpora = load_stages(config, reporter)
        self._each = stage_configs(config)
        self._contexts = [
            load_contexts(one, corpora, reporter) for one, corpora in zip(self._each, self._corpora, strict=True)
        ]
        self._scorer = build.first_scorer(config, self._corpora, self._contexts[-1], reporter)
        self._adapter: Adapter = self._scorer.adapter
        if resume and config.privacy.sample_rate == "auto":  # a cell of an experiment
            config = config.with_sample_rate(load_config(self._folder.config).sample_rate)
        self._config, self._sampling = resolve_sample_rate(config, self._corpora[0], self._adapter)
        self._each = stage_configs(self._config)
        if self._sampling:
            reporter.note(self._sampling)
        if config.model.image_splitting or config.model.frames > 1:
            base = self._adapter.base
            reporter.note(image_cost(base.processor, base.prompter, config.model.frames))
        self._initial, self._untuned = self._adapter.vector(), self._adapter.untuned()
        self._plan = self._fix_plans(self._folder.name if resume else None)

    def _fix_plans(self, run: str | None) -> StagedPlan:
        config, width = self._config, self._adapter.dimension
        stages = zip(self._each, self._corpora, strict=True)
        requests = [request_of(one, corpora, width) for one, corpora in stages]
        spaces = config.stages.spaces
        names = [f"{place}-{space}" for place, space in enumerate(spaces, 1)] or [""]
        earlier = earlier_of(config, run)
        limit = config.privacy.max_epsilon if earlier else None
        plan = plan_stages(names, requests, limit=limit, earlier=earlier)
        if config.federation.aggregation == "encrypted":
            for agreed in plan.plans:  # refused here, before there is a folder
                choose_fields(agreed.encoding)
        return plan

    def run(self, held: ExitStack) -> RunSummary:
        """Run all stages that are not finished; a new folder is ``held`` until the end."""
        config, last = self._config, len(self._each) - 1
        baselines = self._baselines() if config.evaluation.baselines else {}
        evaluate = self._evaluator(last)
        untuned = evaluate(self._untuned)
        done = self._done()
        self._reporter.note(build.opening(config, self._plan.whole, self._corpora[0], untuned))
        record = self._prepare()
        if not self._resume:
            held.enter_context(self._folder.held())
        config = self._config
        summaries: list[StageSummary] = []
        ended: list[Vector] = []
        for place in range(last + 1):
            start, before = self._hand_over(ended), untuned
            if last:
                evaluate = self._evaluator(place)
                before = evaluate(start)
            if place < len(done):
                ended.append(done[place])
                after = evaluate(ended[-1])
            else:
                going_on = self._resume and place == len(done)
                result = self._federate(place, start, ended, evaluate, going_on)
                ended.append(result.adapter)
                rows = [r for r in result.rows if r.get("stage", "") == self._plan.names[place]]
                after = final_figures(rows[-1] if rows else {}, before, evaluate, ended[-1])
            summaries.append(StageSummary(self._plan.names[place], before, after))
        graph = self._plan.whole.graph
        needs = [aggregation_of(config).assumptions, graph.text if graph else ""]
        self._adapter.load(ended[-1])
        remarks = close_record(self._folder, config, record, perplexity(self._adapter))
        summary = RunSummary(
            folder=self._folder.path,
            rows=result.rows,
            baselines=baselines,
            before=untuned,
            after=summaries[-1].after,
            promise=" ".join(filter(None, [self._plan.privacy.promise(result.epsilon), *needs])),
            seconds=time.monotonic() - self._started,
            stages=tuple(summaries) if config.stages.spaces else (),
            remarks=tuple(remarks),
        )
        # The weights come last: they are what tells a finished run.
        task = describe_task(config, self._scorer, evaluate.thresholds())
        write_task(task, self._folder.adapter)
        spent = (result.epsilon, self._plan.privacy.delta)
        write_card(self._folder.adapter, task, config, summary, self._corpora[-1].test.name, spent)
        self._adapter.save(self._folder.adapter)
        return summary

    def _prepare(self) -> dict[str, Any]:
        """Measure on public records and make the folder; return what was recorded."""
        if self._resume:
            record = read_record(self._folder)
            self._fix_rate(record["server_lr"]["server_lr"])
            return record
        self._scorer.adapter.load(self._initial)
        scorer = LabelScorer(self._adapter, self._corpora[0].private.space, self._question(0))
        made = prepare(
            self._each[0],
            self._plan.plans[0],
            scorer,
            self._corpora[0],
            self._contexts[0],
            self._reporter,
            self._confirm,
        )
        made["sample_rate"] = self._sampling
        self._fix_rate(made["server_lr"]["server_lr"])
        self._initial = self._adapter.vector()
        path = self._folder.path
        self._folder = RunFolder.create(path.parent, with_sha256(dump_config(self._config)), path.name)
        write_record(self._folder, made)
        return made

    def _fix_rate(self, rate: float) -> None:
        if self._config.server_lr is None:
            self._config = self._config.with_server_lr(rate)
            self._each = stage_configs(self._config)

    def _question(self, place: int) -> str:
        return task_question(self._each[place].model.prompt, self._corpora[place].private.space)

    def _baselines(self) -> dict[str, float]:
        """Score the baselines, fitted on records that are open or that nothing protects."""
        config, corpora = self._each[-1], self._corpora[-1]
        unprotected = config.privacy.unit == "none" and len(corpora.private.records) > 1
        fitted = corpora.private if unprotected else corpora.open
        found = feature_baselines(config, self._adapter, fitted, corpora.test, corpora.public, self._reporter)
        self._reporter.note(f"feature baselines are fitted on {len(fitted.records)} records, the others on open ones")
        if config.model.base == "embedded" and not config.data.synthetic:
            self._reporter.note("the embedded base was trained on drawings; on photographs take a SmolVLM2 checkpoint")
        return {**baseline_scores(corpora), **found}

    def _done(self) -> list[Vector]:
        """Return the adapters of the stages that a resumed run has behind it."""
        if not self._resume:
            return []
        state = self._folder.read_checkpoint()
        number = state.get("stage")
        if not isinstance(number, int) or not 1 <= number <= len(self._each):
            raise RunError(f"the checkpoint of {self._folder.path} names no stage of this run; restore it from a copy")
        found = [state.get(f"earlier.{place}") for place in range(1, number)]
        if not all(isinstance(vector, np.ndarray) and vector.shape == self._initial.shape for vector in found):
            raise RunError(
                f"the checkpoint of {self._folder.path} lacks the adapter of an earlier stage; restore it from a copy"
            )
        return [np.asarray(vector, np.float32) for vector in found]

    def _hand_over(self, ended: list[Vector]) -> Vector:
        """Return what a stage begins with; under merge the adapter becomes another one."""
        handover = self._config.stages.handover
        if not ended or handover == "restart":
            return self._initial
        if handover == "carry":
            return ended[-1]
        self._adapter.load(ended[-1])
        self._adapter = StackedAdapter(self._adapter, self._config.adapter.seed + len(ended))
        return self._adapter.vector()

    def _evaluator(self, place: int) -> Evaluator:
        """Set the scorer on a stage's labels and return what evaluates that stage."""
        config, corpora = self._each[place], self._corpora[place]
        self._scorer = LabelScorer(self._adapter, corpora.private.space, self._question(place))
        batch, texts = build.evaluation_batch(config), None
        if config.evaluation.scorer == "generation":
            texts = TextScorer(self._scorer, constrained=config.evaluation.constrained)
        return Evaluator(self._scorer, corpora, batch, self._reporter, self._contexts[place], texts)

    def _federate(
        self, place: int, start: Vector, ended: list[Vector], evaluate: Evaluator, going_on: bool
    ) -> FederationResult:
        config, corpora, contexts = self._each[place], self._corpora[place], self._contexts[place]
        stage = self._plan.stage(place, ended)
        plan, scorer, reporter = stage.plan, self._scorer, self._reporter
        within = f" of stage {stage.name}" if stage.name else ""
        if stage.name:
            reporter.note(
                f"stage {stage.name}: {plan.privacy.rounds} rounds on {len(corpora.private.records)} private records"
            )
        spec = RunSpec(
            stage=stage,
            tasks=lambda: build.client_tasks(config, plan, scorer, corpora, contexts, reporter),
            folder=RunFolder(self._folder.path, stage.name),
            base_hash=build.base_hash_of(self._adapter.base.digest, self._config, stage),
            server_lr=config.server_lr,
            key_source=build.key_source(config, stage.name, kept=self._folder.keys / stage.name),
            aggregation=aggregation_of(config),
            ledgers=config.privacy.ledgers,
            max_epsilon=config.privacy.max_epsilon,
        )
        # Its share of the base's scores decides what trains: that which an interrupted stage began with.
        begun = self._folder.read_checkpoint().get("adapter") if going_on else start
        known = isinstance(begun, np.ndarray) and begun.size >= start.size
        self._adapter.load(np.asarray(begun, np.float32)[: start.size] if known else start)
        optimizer = build.make_optimizer(config, self._adapter, stage.offset)
        first = start
        if (adaptive := AdaptiveNorm.of(plan.privacy)) is not None:
            optimizer = AdaptiveClipping(optimizer, adaptive, updates=plan.local is not None)
            first = adaptive.begin(start)
        if (most := config.federation.max_rejected_rounds) is not None:
            optimizer = SumGuard(optimizer, most, config.federation.max_agreement)
        options = build.run_options(config, lambda vector: evaluate(vector[: start.size]), reporter)
        result = run_federation(spec, first, optimizer, engine=self._engine, resume=going_on, **options)
        result = replace(result, adapter=result.adapter[: start.size])
        ran = any(row.get("stage", "") == stage.name for row in result.rows)
        if ran and np.array_equal(result.adapter, start):
            raise AdapterUnmovedError(
                f"after {plan.privacy.rounds} rounds{within} the adapter is what it was at the "
                "start; raise federation.server_lr or federation.rounds, and check that the "
                "records have labels the model can tell apart"
            )
        return result
