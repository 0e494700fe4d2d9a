"""Events: plain descriptions that refuse what describes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy import Event, SampledGaussian, SampledSkellam, event_from_json

SKELLAM = SampledSkellam(0.05, 4000.0, 40.0, 2500.5, 7, 1e-12)
GAUSSIAN = SampledGaussian(0.1, 0.7, 3)


@pytest.mark.parametrize("event", [SKELLAM, GAUSSIAN])
def test_events_survive_json(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


def test_events_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SKELLAM.variance = 1e9  # type: ignore[misc]


def test_times_changes_only_the_count() -> None:
    assert SKELLAM.times(9) == dataclasses.replace(SKELLAM, count=9)
    assert GAUSSIAN.times(9) == SampledGaussian(0.1, 0.7, 9)


def test_failures_add_up() -> None:
    assert math.isclose(SKELLAM.failure, 7e-12)
    assert GAUSSIAN.failure == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"sample_rate": math.nan},
        {"l1": 0.0},
        {"l2": -1.0},
        {"l1": 39.0},  # below the 2-norm
        {"variance": 0.0},
        {"variance": math.inf},
        {"count": 0},
        {"count": 1.5},
        {"count": True},
        {"beta": 1.0},
        {"beta": -1e-12},
        {"beta": math.nan},
    ],
)
def test_impossible_skellam_events_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SKELLAM, **change)


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"sample_rate": 2.0}, {"count": 0}]
)
def test_impossible_gaussian_events_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(GAUSSIAN, **change)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "laplace", "scale": 1.0},
        {"kind": ["sampled_gaussian"]},
        {"kind": "sampled_gaussian", "sample_rate": 0.1, "noise_multiplier": 1.0},
        {**GAUSSIAN.to_json(), "discount": 0.5},
        {**GAUSSIAN.to_json(), "noise_multiplier": "1e9"},
        {**GAUSSIAN.to_json(), "sample_rate": True},
        {**GAUSSIAN.to_json(), "count": None},
    ],
)
def test_what_cannot_be_priced_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        event_from_json(data)


def test_values_out_of_range_are_refused_from_json_too() -> None:
    with pytest.raises(ConfigError):
        event_from_json({**GAUSSIAN.to_json(), "count": 0})
