"""A bound is never shown below what it is."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.rounding import percent_up, round_up


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (7.9996, 3, "8"),
        (7.9990001, 3, "8"),
        (7.999, 3, "7.999"),
        (0.3, 3, "0.3"),
        (0.1 + 0.2, 3, "0.301"),
        (1e-9, 3, "0.001"),
        (0.0, 3, "0"),
        (12.0, 0, "12"),
        (100.2, 0, "101"),
        (1e6, 2, "1000000"),
        (math.inf, 3, "infinite"),
    ],
)
def test_known_values(value: float, digits: int, text: str) -> None:
    assert round_up(value, digits) == text


@given(st.floats(0.0, 1e9), st.integers(0, 6))
def test_never_less_than_the_number_and_less_than_a_step_more(value: float, digits: int) -> None:
    shown, exact = Fraction(round_up(value, digits)), Fraction(repr(value))
    assert exact <= shown < exact + Fraction(1, 10**digits)
    assert float(shown) >= value


def test_a_share() -> None:
    assert percent_up(0.1234) == "12.4 %"
