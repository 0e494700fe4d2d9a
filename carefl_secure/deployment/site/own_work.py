"""What a site computes with: its own base model, and its own records, read in the background.

torch is imported here, where a run begins, and in no other part of a node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from carefl_secure.config import Config
from carefl_secure.deployment.site.site_log import SiteLog
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.federation.local_update.task import DeferredTask, LocalTask
from carefl_secure.federation.plan.run_plan import RunPlan


class Work:
    """The base hash and the task of a site for a run, both of the site's own making.

    ``config`` is the proposed one with the site's own paths, ``index`` the place among the clients.
    ``own_data`` says whether all records of ``data.source`` are this site's, or only its share, as
    in a rehearsal. Raises `ConfigError` or `ModelError` for what follows from public settings.

    Guarantees
    ----------
    No record of the site's own folder is opened before this returns, so no answer to a proposal
    depends on one, nor does its time.
    """

    def __init__(self, config: Config, plan: RunPlan, index: int, own_data: bool, log: SiteLog) -> None:
        from carefl_secure.runs import build
        from carefl_secure.runs.captions import load_contexts
        from carefl_secure.runs.corpora import agreed_space, load_own
        from carefl_secure.runs.staged_corpora import load_corpora

        if config.stages.spaces:
            raise ConfigError("a run in stages stays in one process; a site joins one stage")
        if own_data:
            scorer = build.label_scorer(config, agreed_space(config))
            corpora = None
        else:
            data = config.data.model_copy(update={"at_sites": False})
            corpora = load_corpora(config.model_copy(update={"data": data}), log)
            scorer = build.label_scorer(config, corpora.private.space)

        def load() -> LocalTask:
            held = load_own(config, log) if corpora is None else replace(corpora, shares=[corpora.shares[index]])
            contexts = load_contexts(config, held, log)
            pad = config.privacy.pad_rounds is not False
            tasks = build.client_tasks(config, plan, scorer, held, contexts, log, pad=pad)
            task = tasks[0]
            if own_data and task.records > plan.privacy.public_records:
                log.note(
                    f"this site holds {task.records} records, more than the "
                    f"{plan.privacy.public_records} that the run declares for all sites together"
                )
            return task

        self.base_hash = build.base_hash_of(scorer.adapter.base.digest, config)
        self.task = own_task(scorer.adapter.dimension, load, log) if own_data else load()


@functools.cache
def _reader() -> ThreadPoolExecutor:
    """Return the one thread that reads records, so that two runs do not fill the memory."""
    return ThreadPoolExecutor(1, "records")


def own_task(dimension: int, load: Callable[[], LocalTask], log: SiteLog) -> DeferredTask:
    """Begin to load a task in the background; what it fails with stays in the site's log.

    The task raises `DataError` where loading failed, whatever the cause.
    """
    loading: Future[LocalTask] = _reader().submit(load)

    def failed(done: Future[LocalTask]) -> None:
        if error := done.exception():
            log.reason(error)

    def made() -> LocalTask:
        error = loading.exception()  # waits
        if error is not None:
            raise DataError(
                f"the records cannot be used ({type(error).__name__}: {error}); correct them, see "
                "carefl-secure data check"
            ) from error
        return loading.result()

    loading.add_done_callback(failed)
    return DeferredTask(dimension, made)
