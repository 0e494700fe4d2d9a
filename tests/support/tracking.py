"""Runs that trackers follow: a reporter that remembers, and what a tracker must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from carefl_secure.errors import CareflError
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder


class Watching(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[Mapping[str, float | int | str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        self.rows.append(row)


class Stopped(CareflError):
    """What a test stops a run with."""


class Crashing(Watching):
    """Crashes when round 2 is in the folder, and before any tracker gets it."""

    def round(self, row: Mapping[str, float | int | str]) -> None:
        if row["round"] == 2:
            raise Stopped("crash")


def expected(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Return the figures of ``metrics.jsonl`` by name."""
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "round" and not isinstance(value, str):
                found.setdefault(name, []).append((row["round"], float(value)))
    return found


def agree(stated: Mapping[str, Any], kept: Mapping[str, Any], rel: float) -> bool:
    assert set(stated) == set(kept)
    for name, pairs in kept.items():
        assert [step for step, _ in stated[name]] == [step for step, _ in pairs], name
        assert [v for _, v in stated[name]] == pytest.approx([v for _, v in pairs], rel=rel), name
    return True
