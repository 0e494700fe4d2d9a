"""A proposed configuration in a site's own words: no path of the proposer's choosing is opened."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from carefl_secure.config import Config
from carefl_secure.config.load import build_config, flatten
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.errors import PolicyError, ProtocolError, RunError
from carefl_secure.model.prompts import TASK_PROMPTS


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
        settings = flatten(yaml.safe_load(proposal.config))
    except (yaml.YAMLError, AttributeError) as error:
        raise ProtocolError("the proposed configuration is not readable") from error
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
