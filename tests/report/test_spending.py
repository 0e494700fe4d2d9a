"""Prices round by round, also of long runs."""

from __future__ import annotations

import pytest

from carefl_secure.privacy import Event, SampledGaussian, SampledSkellam, accountant_name, epsilon
from carefl_secure.report import spending as accounts
from carefl_secure.report.spending import _by_round

SKELLAM = SampledSkellam(0.05, 2e5, 1131.0, (1.5 * 1131.0) ** 2, 1, 1e-12, 1 << 16)


@pytest.mark.parametrize("event", [SKELLAM, SampledGaussian(0.05, 1.5)])
def test_five_hundred_rounds_have_a_bound_each(
    event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    coarse = accounts.coarse_epsilon

    def counted(events: tuple[Event, ...], delta: float) -> float:
        asked.append(sum(one.count for one in events))
        return coarse(events, delta)

    monkeypatch.setattr(accounts, "coarse_epsilon", counted)
    until = {number: (event.times(number),) for number in range(1, 501)}
    found = _by_round(until, 1e-5)
    assert len(asked) <= 16  # this is what takes the time
    assert list(found.at_most) == list(until)
    prices = list(found.at_most.values())
    assert prices == sorted(prices)
    for number in (1, 17, 250, 333, 500):
        exact = epsilon(until[number], 1e-5)
        assert found.at_least[number] - found.tolerance <= exact <= found.at_most[number] + 1e-9
    assert found.at_most[500] == pytest.approx(epsilon(until[500], 1e-5), abs=0.02)
    assert "upper bound" in found.words


def test_a_few_rounds_are_each_priced_exactly() -> None:
    until: dict[int, tuple[Event, ...]] = {n: (SKELLAM.times(n),) for n in (1, 2, 3)}
    found = _by_round(until, 1e-5)
    assert found.at_most == found.at_least == {n: epsilon(e, 1e-5) for n, e in until.items()}
    assert found.tolerance == 0.0


def test_the_account_that_is_named_depends_on_delta() -> None:
    event = SampledSkellam(1.0, 80.0, 20.0, 60.0**2, 3, 0.0, 16)
    names = {accountant_name([event], delta)[:3] for delta in (1e-2, 1e-10)}
    assert names == {"PLD", "RDP"}
