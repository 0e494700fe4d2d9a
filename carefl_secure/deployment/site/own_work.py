"""A proposed run in a site's own words: its own paths, base model, records. Nothing else on a node imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from carefl_secure.config import Config
from carefl_secure.config.load import build_config, flatten, parse_yaml
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.deployment.site.site_log import SiteLog
from carefl_secure.errors import ConfigError, DataError, PolicyError, ProtocolError, RunError
from carefl_secure.federation.local_update.task import DeferredTask, LocalTask
from carefl_secure.federation.plan.run_plan import RunPlan

_READER = ThreadPoolExecutor(1, "records")  # one thread, so that the records of two runs do not fill the memory


def refuse_paths(config: Config, *, own_data: bool) -> None:
    """Refuse a proposal that would have a site open a file of the proposer's choosing.

    Raises `PolicyError`, clause ``path``, when the base model is neither the embedded one nor a hub
    id, the prompt none of those that come with the package, or the records are neither drawn nor
    the site's own (``own_data``). A hub id that is also the name of something here raises
    `RunError`, which is sealed: what stands on a site's disk is its own affair.
    """
    base = config.model.base
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base)
    if hub and Path(base).exists():
        raise RunError(f"the base model {base} would be read from a path of this name; move it")
    if base != "embedded" and not hub:
        raise PolicyError("the base model is named by a path; name a hub id", "path")
    from carefl_secure.model.prompts import TASK_PROMPTS  # and torch with it, so not before a run is proposed

    if config.model.prompt not in TASK_PROMPTS:
        raise PolicyError("the prompt is named by a path; name one of the package's", "path")
    if not own_data and not config.data.synthetic:
        raise PolicyError("the records are named by a path, and the bundle names none", "path")


def own_config(proposal: Proposal, bundle: SiteBundle, *, rehearsal: bool) -> Config:
    """Read the proposed settings, with every path in them replaced by the site's own.

    A ``rehearsal``, of one machine with itself, may keep predictable noise and its own paths.
    Raises `PolicyError`, clause ``path``, or ``unprotected`` for predictable noise; `ProtocolError`
    or `ConfigError` when the settings cannot be read, or contradict each other.
    """
    try:
        parsed = parse_yaml(proposal.config, "the proposed configuration")
    except ConfigError as error:
        raise ProtocolError("the proposed configuration is not readable") from error
    if not isinstance(parsed, dict):
        raise ProtocolError("the proposed configuration is not readable: it is no mapping")
    settings = flatten(parsed)
    if settings.get("unsafe_deterministic_noise") and not rehearsal:
        raise PolicyError("the run asks for predictable noise", "unprotected")
    if not rehearsal:
        own: dict[str, str | None] = {"data.cache_dir": None, "privacy.ledgers": None, "model.context_cache": None}
        own |= {"model.device": "auto", "model.feature_cache": "auto"}
        settings |= {key: value for key, value in own.items() if key in settings}
    if bundle.data is not None:
        settings["data.source"] = bundle.data
        settings.pop("data.records", None)  # how many the server would draw
    config = build_config(settings)
    if not rehearsal:
        # A helper opens no records at all, so the server's own path means nothing to it.
        refuse_paths(config, own_data=bundle.data is not None or bundle.role == "helper")
    return config


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
            task = build.client_tasks(config, plan, scorer, held, contexts, log, pad=pad)[0]
            if own_data and task.records > plan.privacy.public_records:
                log.note(
                    f"this site holds {task.records} records, more than the "
                    f"{plan.privacy.public_records} that the run declares for all sites together"
                )
            return task

        self.base_hash = build.base_hash_of(scorer.adapter.base.digest, config)
        self.task = own_task(plan.encoding.dimension, load, log) if own_data else load()


def own_task(dimension: int, load: Callable[[], LocalTask], log: SiteLog) -> DeferredTask:
    """Begin to load a task in the background; a failure stays in the site's log, and the task raises `DataError`."""
    loading: Future[LocalTask] = _READER.submit(load)

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
