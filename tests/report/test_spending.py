"""Prices round by round, also of long runs."""

from __future__ import annotations

import pytest

from carefl_secure.privacy import Event, SampledGaussian, SampledSkellam, accountant_name, epsilon
from carefl_secure.report.spending import _by_round

SKELLAM = SampledSkellam(0.05, 2e5, 1131.0, (1.5 * 1131.0) ** 2, 1, 1e-12, 1 << 16)


def test_a_long_run_is_priced_exactly_at_some_rounds() -> None:
    until: dict[int, tuple[Event, ...]] = {n: (SKELLAM.times(n),) for n in range(1, 501)}
    exact, at_least, words = _by_round(until, 1e-5)
    assert len(exact) <= 33  # this is what takes the time
    assert {1, 500} <= set(exact)
    assert list(exact) == sorted(exact)
    for number in (1, 500, list(exact)[7]):
        assert exact[number] == epsilon(until[number], 1e-5)
    for number in (2, 17, 333):
        assert number in exact or at_least[number] <= epsilon(until[number], 1e-5)
    assert "of 500 rounds" in words


@pytest.mark.parametrize("event", [SKELLAM, SampledGaussian(0.05, 1.5)])
def test_the_rounds_of_a_default_run_are_each_priced_exactly(event: Event) -> None:
    until: dict[int, tuple[Event, ...]] = {n: (event.times(n),) for n in range(1, 21)}
    exact, at_least, words = _by_round(until, 1e-5)
    assert exact == at_least == {n: epsilon(e, 1e-5) for n, e in until.items()}
    assert words.startswith("every round")


def test_the_account_that_is_named_depends_on_delta() -> None:
    event = SampledSkellam(1.0, 80.0, 20.0, 60.0**2, 3, 0.0, 16)
    names = {accountant_name([event], delta)[:3] for delta in (1e-2, 1e-10)}
    assert names == {"PLD", "RDP"}
