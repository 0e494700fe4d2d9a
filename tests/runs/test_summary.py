"""The closing sentence of a run says whether it was worth it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from carefl_secure.runs.summary import RunSummary


def verdict(after: float, before: float = 0.4, **baselines: float) -> str:
    scores = ({"mAP": before}, {"mAP": after} if not math.isnan(after) else {})
    return RunSummary(Path("run"), [], baselines, *scores, promise="", seconds=1.0).verdict


def test_what_is_beaten_is_counted() -> None:
    assert verdict(0.5, majority=0.2, feature_logistic=0.49) == (
        "the tuned model has a higher mAP than the untuned one and all 2 baselines"
    )


@pytest.mark.parametrize(
    ("after", "before", "baselines", "named"),
    [
        (0.5, 0.6, {"majority": 0.2}, ["the untuned model (0.600)"]),
        (0.5, 0.4, {"feature_logistic": 0.51, "majority": 0.2}, ["the baseline feature logistic (0.510)"]),
        (0.5, 0.5, {}, ["the untuned model (0.500)"]),  # a draw is no win
        (0.5, math.nan, {}, ["the untuned model (nan)"]),
        (math.nan, 0.4, {"majority": 0.2}, ["the untuned model (0.400)", "the baseline majority (0.200)"]),
    ],
)
def test_what_is_not_beaten_is_named(
    after: float, before: float, baselines: dict[str, float], named: list[str]
) -> None:
    found = verdict(after, before, **baselines)
    assert "does NOT beat" in found
    assert found.partition("beat ")[2] == ", ".join(named)
