"""The agreement: refused when out of range, hashed whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.secagg import RoundParameters, default_threshold

Make = Callable[..., RoundParameters]


@pytest.mark.parametrize(("clients", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (9, 7), (10, 7), (100, 67)])
def test_default_threshold(clients: int, threshold: int) -> None:
    assert default_threshold(clients) == threshold
    assert 3 * threshold > 2 * clients


@pytest.mark.parametrize(
    "change",
    [
        {"task": b"other"},
        {"round": 8},
        {"dimension": 17},
        {"bits": 16},
        {"threshold": 6},
        {"min_survivors": 4},
        {"model_hash": b"n" * 32},
        {"base_hash": b"c" * 32},
        {"plan_hash": b"q" * 32},
    ],
)
def test_context_depends_on_every_field(parameters: Make, change: dict[str, Any]) -> None:
    assert parameters(6).context() == parameters(6).context()
    assert parameters(6).context() != parameters(6, **change).context()


def test_context_depends_on_the_order_of_the_roster(parameters: Make) -> None:
    roster = parameters(5).roster
    assert parameters(5).context() != parameters(5, roster=roster[::-1]).context()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 8}, "16 or 32"),
        ({"bits": 64}, "16 or 32"),
        ({"dimension": 0}, "dimension"),
        ({"dimension": 1 << 31}, "dimension"),
        ({"round": -1}, "round"),
        ({"threshold": 3}, "threshold"),
        ({"threshold": 6}, "threshold"),
        ({"min_survivors": 2}, "min_survivors"),
        ({"min_survivors": 6}, "min_survivors"),
        ({"model_hash": b"short"}, "model_hash"),
        ({"base_hash": "x" * 32}, "base_hash"),
        ({"plan_hash": b""}, "plan_hash"),
        ({"roster": (b"k" * 32,) * 5}, "same key"),
        ({"roster": tuple(bytes([i]) * 31 for i in range(5))}, "roster entry"),
        ({"roster": (b"a" * 32, b"b" * 32)}, "3 to 1000"),
    ],
)
def test_bad_values_are_refused(parameters: Make, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parameters(5, **change)


def test_required_survivors_is_the_larger_bound(parameters: Make) -> None:
    assert parameters(9).required_survivors == 7
    assert parameters(9, min_survivors=8).required_survivors == 8
    assert parameters(4, min_survivors=3).required_survivors == 3


@pytest.mark.parametrize("clients", range(3, 12))
def test_colluders_cannot_sign_two_sets(parameters: Make, clients: int) -> None:
    made = parameters(clients)
    bad = made.max_colluders
    honest = clients - bad
    assert 2 * (made.threshold - bad) > honest
    assert 2 * (made.threshold - bad - 1) <= honest - 1
    assert bad < made.threshold
    assert made.required_survivors - bad >= 1
