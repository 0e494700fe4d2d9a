"""Which epsilon, noise, number of rounds or sampling rate goes with the other three."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy.accounting.accountant import (
    ROUGH_GRID,
    accountant_name,
    coarse_epsilon,
    epsilon,
    epsilon_by_delta,
    rdp_epsilon,
)
from carefl_secure.privacy.accounting.budget_request import MAX_ROUNDS, BudgetQuestion, event_of_question, nominal_norm
from carefl_secure.privacy.accounting.calibration import calibrate_noise
from carefl_secure.privacy.accounting.events import Event
from carefl_secure.privacy.statement import verdict
from carefl_secure.rounding import html_table, round_up

__all__ = ["MAX_ROUNDS", "Budget", "BudgetQuestion", "epsilon_by_rounds", "solve_budget"]

Price: TypeAlias = Callable[[Event, float], float]
_DRAWN_GRID = 3e-3  # for the curve: a tenth of a second a point, some hundredths above the truth


# The account that is named in the answer; the others are valid as well, and too large: by up to 5 %, or by less.
_named: Price = functools.lru_cache(256)(lambda event, delta: epsilon([event], delta))
_rough: Price = functools.lru_cache(256)(lambda event, delta: coarse_epsilon([event], delta, ROUGH_GRID))
_coarse: Price = functools.lru_cache(256)(lambda event, delta: coarse_epsilon([event], delta))
_renyi: Price = functools.lru_cache(256)(lambda event, delta: rdp_epsilon([event], delta))


def most_rounds(question: BudgetQuestion, target: float) -> int:
    """Return the largest number of rounds within the target."""
    one = event_of_question(replace(question, rounds=1))

    def fits(price: Price, count: int) -> bool:
        return price(one.times(count), question.delta) <= target

    if not fits(_named, 1):
        raise BudgetExceededError(
            f"one round alone costs epsilon {_named(one, question.delta):.4g}, above "
            f"{target:g}; choose more noise, a lower sample rate or a larger epsilon"
        )
    if (count := _largest(fits, MAX_ROUNDS)) >= MAX_ROUNDS:
        raise ConfigError(f"{MAX_ROUNDS} rounds and more fit into epsilon {target:g}; choose less noise")
    return count


def highest_rate(question: BudgetQuestion, target: float) -> float:
    """Return the highest sampling rate within the target, to four digits, rounded down."""

    def rate(place: int) -> float:  # the place of a number of four digits among all of them from 1e-6
        return float(f"{1000 + place % 9000}e{place // 9000 - 9}")

    def fits(price: Price, place: int) -> bool:
        return price(event_of_question(replace(question, sample_rate=rate(place))), question.delta) <= target

    if not fits(_named, 0):
        raise BudgetExceededError(
            f"even a sample rate of {rate(0):g} costs more than epsilon {target:g}; choose "
            "more noise, fewer rounds or a larger epsilon"
        )
    return rate(_largest(fits, 54_000))


def _largest(fits: Callable[[Price, int], bool], most: int) -> int:
    """Return the largest whole number up to ``most`` that fits by the named account, as the least does."""
    count = 1
    for price in (_renyi, _rough, _coarse, _named):  # each dearer, and closer
        step = 1
        while count + step <= most and fits(price, count + step):
            count, step = count + step, 2 * step
        high = min(count + step, most + 1)
        while high - count > 1:
            middle = (count + high) // 2
            count, high = (middle, high) if fits(price, middle) else (count, middle)
    while not fits(_named, count):  # where a cheaper account proved more than the named one
        count -= max(1, count // 100)
    return count


@dataclass(frozen=True)
class Budget:
    """All four quantities, and what epsilon rests on; fields without a comment are as in the question."""

    solved_for: str  # which one was computed; "nothing" where all four were given and agree
    epsilon: float  # what the accountant finds for the other three, in nats: never above a target
    noise_multiplier: float
    rounds: int
    sample_rate: float
    delta: float
    unit: str
    mechanism: str
    accountant: str  # its name and what decides its accuracy
    verdict: str  # "strong", "reasonable, not strong" or "weak"
    adjacency: str = "add-or-remove-one"
    records_per_person: int | None = None
    dimension: int | None = None
    bands: int = 1
    by_delta: tuple[tuple[float, float], ...] = ()  # deltas, and the epsilon that holds at each; a coarser grid

    def _repr_html_(self) -> str:
        """Show the four quantities in a notebook."""
        head = ("epsilon", "delta", "noise multiplier", "rounds", "sample rate", "verdict")
        noise, rate = f"{self.noise_multiplier:.6g}", f"{self.sample_rate:.6g}"
        row = (round_up(self.epsilon), f"{self.delta:g}", noise, self.rounds, rate, self.verdict)
        return html_table(head, [row], " ".join(self.assumptions()))

    def assumptions(self) -> tuple[str, ...]:
        """Return what must hold for epsilon to hold, one sentence each."""
        k = self.records_per_person
        of = {
            "record": "image-person record",
            "person": "person, with all its records at one client"
            if k is None
            else f"person, with at most {k} records at one client, each drawn and clipped on its "
            f"own; the noise multiplier is over {k} times the norm bound of a record",
            "client": "client, with all it holds",
        }[self.unit]
        drawn = "person" if self.unit == "person" and k is None else "record"
        sampled = (
            "no sampling: every unit is in every sum"
            if self.sample_rate == 1.0
            else f"Poisson sampling: every {drawn} enters each sum on its own with probability "
            f"{self.sample_rate:g}, and the server never learns which; shuffled batches do not "
            "qualify and cost several times more"
        )
        noise = "Gaussian noise of each client on its own sum"
        if self.bands > 1:
            sampled = (
                f"Poisson sampling in groups: every record is in one of {self.bands}, drawn by its client alone, and "
                f"enters each sum of its group, one in {self.bands}, with probability "
                f"{min(1.0, self.bands * self.sample_rate):g}; the server never learns which"
            )
        if self.dimension is not None:
            noise = (
                f"Skellam noise of the honest survivors, under a secure sum of {self.dimension} values, for an "
                f"encoding with a norm bound of at least {nominal_norm(self.dimension):.0f} integer units"
                + f", banded over {self.bands} rounds: the multiplier is over the norm of the coefficients as well"
                * (self.bands > 1)
            )
        return (
            f"unit: one {of}",
            "adjacency: add or remove one unit",
            sampled,
            f"mechanism: {noise}",
            f"accountant: {self.accountant}",
            f"compositions: {self.rounds} sums of the same kind, fixed in advance"
            + f", of which {-(-self.rounds // self.bands)} can hold one record" * (self.bands > 1),
        )


def solve_budget(question: BudgetQuestion) -> Budget:
    """Find the quantity left out, or check that all four agree.

    The result has the least noise, the most rounds or the highest sampling rate within the target.

    ConfigError where the target would be kept by any value at all; BudgetExceededError where no value keeps the
    target, or all four were given and cost more than the epsilon.

    Guarantees
    ----------
    ``epsilon`` is an upper bound that the named accountant proves for the returned values, and not
    above the target where one was given.
    """
    missing = question.missing[0] if question.missing else "nothing"
    target, asked, question = question.epsilon, question, question.of_one_group()
    if target is not None and missing == "noise_multiplier":
        noise = calibrate_noise(
            lambda z: event_of_question(replace(question, noise_multiplier=z)), target, question.delta
        )
        question = replace(question, noise_multiplier=noise)
    elif target is not None and missing == "rounds":
        question = replace(question, rounds=most_rounds(question, target))
    elif target is not None and missing == "sample_rate":
        question = replace(question, sample_rate=highest_rate(question, target))
    event = event_of_question(question)
    cost = _named(event, question.delta)
    if not math.isfinite(cost):
        raise ConfigError(
            f"noise multiplier {question.noise_multiplier:g} is next to no noise: no finite "
            "epsilon can be proved; choose a larger one"
        )
    if target is not None and cost > target:
        raise BudgetExceededError(
            f"these values cost epsilon {cost:.4g} at delta {question.delta:g}, above "
            f"{target:g}; leave one of them out to have it computed, or raise epsilon"
        )
    found = {
        "epsilon": cost,
        "rounds": asked.rounds or event.count * asked.bands,
        "sample_rate": asked.sample_rate or float(question.sample_rate or 0.0) / asked.bands,
        "bands": asked.bands,
    }
    return Budget(
        **{**vars(question), **found},
        solved_for=missing,
        accountant=accountant_name([event], question.delta),
        verdict=verdict(cost),
        by_delta=epsilon_by_delta([event], question.delta),
    )


def epsilon_by_rounds(budget: Budget, points: int = 12) -> list[tuple[int, float]]:
    """Return (rounds, epsilon) for up to twice the rounds of a budget, its own among them.

    At most ``points`` pairs, ascending. The grid is rougher than that of the budget's own epsilon,
    so values may lie some percent above the truth, but never above the next.
    """
    asked = BudgetQuestion(**{name: getattr(budget, name) for name in BudgetQuestion.__dataclass_fields__})
    event = event_of_question(asked).times(1)
    half = max(1, points // 2)
    counts = {max(1, round(budget.rounds * i / half)) for i in range(1, 2 * half + 1)}
    prices = [
        budget.epsilon
        if count == budget.rounds
        else coarse_epsilon([event.times(-(-count // budget.bands))], budget.delta, _DRAWN_GRID)
        for count in sorted(counts)
    ]
    # fewer rounds never cost more than more of them, whatever the grids say
    for place in range(len(prices) - 2, -1, -1):
        prices[place] = min(prices[place], prices[place + 1])
    return list(zip(sorted(counts), prices, strict=True))
