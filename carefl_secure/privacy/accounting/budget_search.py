"""The most rounds, or the highest sampling rate, that an epsilon allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy.accounting.accountant import ROUGH_GRID, coarse_epsilon, epsilon, rdp_epsilon
from carefl_secure.privacy.accounting.budget_request import MAX_ROUNDS, BudgetQuestion, event_of_question
from carefl_secure.privacy.accounting.events import Event

Price: TypeAlias = Callable[[Event, float], float]
_LEAST_RATE = 1e-6


@functools.lru_cache(maxsize=256)
def named_epsilon(event: Event, delta: float) -> float:
    """Price one event by the account that is named in the answer."""
    return epsilon([event], delta)


@functools.lru_cache(maxsize=256)
def rough_epsilon(event: Event, delta: float) -> float:
    """Price one event by a loss distribution on a rough grid: valid, and up to 5 % too large."""
    return coarse_epsilon([event], delta, ROUGH_GRID)


@functools.lru_cache(maxsize=256)
def _coarse(event: Event, delta: float) -> float:
    return coarse_epsilon([event], delta)


def _renyi(event: Event, delta: float) -> float:
    return rdp_epsilon([event], delta)


def most_rounds(question: BudgetQuestion, target: float) -> int:
    """Return the largest number of rounds within the target."""
    one = event_of_question(question, rounds=1)

    def fits(price: Price, count: int) -> bool:
        return price(one.times(count), question.delta) <= target

    if not fits(named_epsilon, 1):
        raise BudgetExceededError(
            f"one round alone costs epsilon {named_epsilon(one, question.delta):.4g}, above "
            f"{target:g}; choose more noise, a lower sample rate or a larger epsilon"
        )
    count = 1
    for price in (_renyi, rough_epsilon, _coarse, named_epsilon):  # each dearer, and closer
        if not fits(price, count):
            continue
        step = max(1, count // 1000)
        while count + step <= MAX_ROUNDS and fits(price, count + step):
            count, step = count + step, 2 * step
        high = min(count + step, MAX_ROUNDS + 1)
        while high - count > 1:
            middle = (count + high) // 2
            count, high = (middle, high) if fits(price, middle) else (count, middle)
    while not fits(named_epsilon, count):  # where a cheaper account proved more than the named one
        count -= max(1, count // 100)
    if count >= MAX_ROUNDS:
        raise ConfigError(f"{MAX_ROUNDS} rounds and more fit into epsilon {target:g}; choose less noise")
    return count


def highest_rate(question: BudgetQuestion, target: float) -> float:
    """Return the highest sampling rate within the target, to four digits, rounded down."""

    def fits(price: Price, rate: float) -> bool:
        return price(event_of_question(question, sample_rate=rate), question.delta) <= target

    if fits(named_epsilon, 1.0):
        return 1.0
    if not fits(named_epsilon, _LEAST_RATE):
        raise BudgetExceededError(
            f"even a sample rate of {_LEAST_RATE:g} costs more than epsilon {target:g}; choose "
            "more noise, fewer rounds or a larger epsilon"
        )
    low, high = math.log(_LEAST_RATE), 0.0
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(_renyi, math.exp(middle)) else (low, middle)
    # each account is closer to the truth than the one before it, and allows more
    for price, step, closeness in ((rough_epsilon, 0.1, 5e-3), (_coarse, 0.01, 5e-5)):
        high = low
        while high < 0.0 and fits(price, math.exp(high)):
            low, high = high, min(0.0, high + step)
        while high - low > closeness:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if fits(price, math.exp(middle)) else (low, middle)
    unit = 10.0 ** (math.floor(low / math.log(10.0)) - 3)
    steps = math.floor(math.exp(low) / unit)
    while fits(named_epsilon, _four_digits((steps + 1) * unit)):
        steps += 1
    while not fits(named_epsilon, _four_digits(steps * unit)):
        steps -= 1
    return _four_digits(steps * unit)


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
