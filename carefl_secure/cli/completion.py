"""What the shell completes beyond commands and options: settings and their values, corpora, engines, runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from glob import escape, glob
from pathlib import Path
from typing import Any, get_type_hints

from carefl_secure.config import Config
from carefl_secure.config.explain import KNOWN, settings
from carefl_secure.config.load import PREFIX, shipped_folder

Completer = Callable[..., list[str]]


def _values(key: str) -> Completer:
    """Complete the words that a setting allows."""
    return lambda: re.findall("`([^`]+)`", next((one.allowed for one in settings() if one.key == key), ""))


def _words(incomplete: str) -> list[str]:
    key = incomplete.partition("=")[0]
    return [f"{key}={value}" for value in _values(key)()] if "=" in incomplete else [f"{name}=" for name in KNOWN]


def _runs(incomplete: str) -> list[str]:
    found = {*glob("runs/*/config.yaml"), *glob(f"{escape(incomplete)}*/config.yaml")}
    return sorted(str(Path(one).parent) for one in found)


def _shipped(folder: str) -> Completer:
    """Complete the configurations that come with the package; the shell itself completes paths of files."""
    return lambda: sorted(f"{PREFIX}{folder}/{one.name}" for one in (shipped_folder("configs") / folder).iterdir())


def _formats() -> list[str]:
    from carefl_secure.data.open_corpus import FORMATS

    return ["auto", *FORMATS]


COMPLETERS: Mapping[str, Completer] = {
    "aggregation": _values("federation.aggregation"),
    "config": _shipped("tasks"),
    "engine": lambda: ["inprocess", "ray", "superlink"],
    "file": _shipped("experiments"),
    "format": _formats,
    "key": lambda: [*KNOWN],
    "labels": _values("data.labels"),
    "resume": _runs,
    "run": _runs,
    "section": lambda: [*Config.model_fields],
    "set_": _words,
    "source": lambda: ["synthetic"],
    "stages": _values("stages.spaces"),
    "track": _values("run.trackers"),
}
"""By the name of a command's parameter, what completes its value."""


def add_completion(commands: Iterable[Callable[..., Any]]) -> None:
    """Let typer complete the commands' parameters that `COMPLETERS` names."""
    for command in commands:
        command.__annotations__ = get_type_hints(command, include_extras=True)  # the objects that typer reads
        for name, kind in command.__annotations__.items():
            for info in getattr(kind, "__metadata__", ()) if name in COMPLETERS else ():
                info.autocompletion = COMPLETERS[name]
