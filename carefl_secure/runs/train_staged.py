"""One run in several stages: the same records under other labels, one promise, one folder.

Privacy. The plans of all stages are fixed before the first round (`plan_stages`); every round of
every stage is written into the same ledgers, which limit the sum to the run's one target. Stages
differ in the name and the plan that their rounds are agreed on, so no context, mask or key is
shared.

Handover. *carry*: the next stage goes on with the same adapter, under a fresh optimiser. *restart*:
it begins with the fresh adapter that the first began with. *merge*: the adapter is frozen, a fresh
one is trained on top of it, and they are saved as one (`StackedAdapter`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carefl_secure.config import Config, dump_config
from carefl_secure.config.root import stage_config
from carefl_secure.errors import AdapterUnmovedError, RunError
from carefl_secure.federation.plan.ciphertext_packing import choose_fields
from carefl_secure.federation.plan.staged import Stage, StagedPlan, plan_stages
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.run import FederationResult, run_federation
from carefl_secure.model.features import cached_features
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.lora import Adapter
from carefl_secure.model.stacked import StackedAdapter
from carefl_secure.model.task_prompts import task_question
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
from carefl_secure.runs.plan_from_config import counted, earlier_of, plan_settings
from carefl_secure.runs.staged_corpora import load_stages
from carefl_secure.runs.summary import RunSummary, StageSummary

__all__ = ["train_stages"]

Vector = npt.NDArray[np.float32]


def train_stages(config: Config, reporter: Reporter, resume: Path | None = None) -> RunSummary:
    """Federate one run in stages and keep it in a folder; see `train`.

    In the result ``before`` and ``after`` are of the untuned and the finished model under the last
    stage's labels; ``stages`` holds what each stage changed.

    Guarantees
    ----------
    All rounds of all stages together cost at most ``privacy.epsilon``, by the server's ledger and
    by every client's, resumptions included: a round that was paid for and lost is not run again.
    """
    with cached_features():  # stages score the same pictures
        return _Stages(config, reporter, resume).run()


class _Stages:
    def __init__(self, config: Config, reporter: Reporter, resume: Path | None) -> None:
        self._started = time.monotonic()
        self._config, self._reporter, self._resume = config, reporter, resume
        self._folder = None if resume is None else RunFolder.open(resume)
        self._corpora = load_stages(config, reporter)
        self._each = [stage_config(config, place) for place in range(len(config.stages.spaces))]
        self._contexts = [
            load_contexts(one, corpora, reporter)
            for one, corpora in zip(self._each, self._corpora, strict=True)
        ]
        scorer = label_scorer(self._each[0], self._corpora[0].private.space)
        self._adapter: Adapter = scorer.adapter
        self._initial = self._adapter.vector()
        self._plan = self._fix_plans(None if self._folder is None else self._folder.name)

    def _fix_plans(self, run: str | None) -> StagedPlan:
        config, width = self._config, self._adapter.dimension
        settings = []
        for one, corpora in zip(self._each, self._corpora, strict=True):
            units, records = counted(one, corpora)
            settings.append(plan_settings(one, units, width, records))
        earlier = earlier_of(config, run)
        names = [f"{place}-{space}" for place, space in enumerate(config.stages.spaces, 1)]
        limit = config.privacy.max_epsilon if earlier else None
        plan = plan_stages(names, settings, limit=limit, earlier=earlier)
        if config.federation.aggregation == "encrypted":
            for agreed in plan.plans:  # refused here, before there is a folder
                choose_fields(agreed.encoding)
        return plan

    def run(self) -> RunSummary:
        """Run all stages that are not finished."""
        config, last = self._config, len(self._each) - 1
        baselines = baseline_scores(self._corpora[-1]) if config.evaluation.baselines else {}
        untuned = self._evaluator(last, self._scorer(last))(self._initial)
        done = self._done()
        whole = dataclasses.replace(self._plan.plans[0], privacy=self._plan.privacy)
        self._reporter.note(opening(whole, self._corpora[0], untuned))
        if self._folder is None:
            self._folder = RunFolder.create(config.run.dir, dump_config(config), config.run.name)
        summaries: list[StageSummary] = []
        ended: list[Vector] = []
        for place in range(last + 1):
            start = self._hand_over(ended)
            scorer = self._scorer(place)
            evaluate = self._evaluator(place, scorer)
            before = evaluate(start)
            if place < len(done):
                ended.append(done[place])
                after = evaluate(ended[-1])
            else:
                going_on = self._resume is not None and place == len(done)
                result = self._federate(place, start, ended, scorer, evaluate, going_on)
                ended.append(result.adapter)
                rows = [r for r in result.rows if r.get("stage") == self._plan.names[place]]
                after = final_figures(rows[-1] if rows else {}, before, evaluate, ended[-1])
            summaries.append(StageSummary(self._plan.names[place], before, after))
        self._adapter.load(ended[-1])
        self._adapter.save(self._folder.adapter)
        return RunSummary(
            folder=self._folder.path,
            rows=result.rows,
            baselines=baselines,
            before=untuned,
            after=summaries[-1].after,
            promise=self._plan.privacy.promise(result.epsilon) + trust_words(config),
            seconds=time.monotonic() - self._started,
            stages=tuple(summaries),
        )

    def _done(self) -> list[Vector]:
        """Return the adapters of the stages that a resumed run has behind it."""
        if self._resume is None or self._folder is None:
            return []
        state = self._folder.read_checkpoint()
        number = state.get("stage")
        if not isinstance(number, int) or not 1 <= number <= len(self._each):
            raise RunError(
                f"the checkpoint of {self._folder.path} names no stage of this run; restore it "
                "from a copy"
            )
        found = [state.get(f"earlier.{place}") for place in range(1, number)]
        if not all(
            isinstance(vector, np.ndarray) and vector.shape == self._initial.shape
            for vector in found
        ):
            raise RunError(
                f"the checkpoint of {self._folder.path} lacks the adapter of an earlier stage; "
                "restore it from a copy"
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

    def _scorer(self, place: int) -> LabelScorer:
        space = self._corpora[place].private.space
        return LabelScorer(self._adapter, space, task_question(self._config.model.prompt, space))

    def _evaluator(self, place: int, scorer: LabelScorer) -> Evaluator:
        config, corpora = self._each[place], self._corpora[place]
        batch, texts = config.performance.evaluation_batch, text_scorer(config, scorer)
        return Evaluator(scorer, corpora, batch, self._reporter, self._contexts[place], texts)

    def _federate(
        self,
        place: int,
        start: Vector,
        ended: list[Vector],
        scorer: LabelScorer,
        evaluate: Evaluator,
        going_on: bool,
    ) -> FederationResult:
        config, plan, corpora = self._each[place], self._plan.plans[place], self._corpora[place]
        assert self._folder is not None
        stage = self._plan.stage(place, ended)
        self._reporter.note(
            f"stage {stage.name}: {plan.privacy.rounds} rounds on {len(corpora.private.records)} "
            "private records"
        )
        contexts, reporter = self._contexts[place], self._reporter
        spec = RunSpec(
            plan=plan,
            tasks=lambda: client_tasks(config, plan, scorer, corpora, contexts, reporter),
            folder=RunFolder(self._folder.path, stage.name),
            base_hash=self._base_hash(stage),
            key_source=key_source(config, stage.name),
            stage=stage,
            **run_settings(config),
        )
        result = run_federation(
            spec,
            start,
            make_optimiser(config, self._adapter),
            resume=going_on,
            **run_options(config, evaluate, reporter),
        )
        ran = any(row.get("stage") == stage.name for row in result.rows)
        if ran and np.array_equal(result.adapter, start):
            raise AdapterUnmovedError(
                f"after {plan.privacy.rounds} rounds of stage {stage.name} the adapter is what it "
                "was at its start; raise federation.server_lr or federation.rounds, and check "
                "that the records have labels the model can tell apart"
            )
        return result

    def _base_hash(self, stage: Stage) -> bytes:
        """Hash what all parties share in a stage: base, settings, all plans, what is frozen."""
        total = hashlib.sha256(base_hash_of(self._adapter.base.digest, self._config))
        total.update(f"\n{stage.digest}\n{stage.name}\n{self._config.stages!r}\n".encode())
        if self._config.stages.handover == "merge":
            for vector in stage.earlier:
                total.update(hashlib.sha256(vector.tobytes()).digest())
        return total.digest()
