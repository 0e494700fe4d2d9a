"""The least noise that keeps a planned release within a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy.accounting.accountant import (
    ROUGH_GRID,
    coarse_epsilon,
    epsilon,
    rdp_epsilon,
)
from carefl_secure.privacy.accounting.events import Event

__all__ = ["calibrate_noise"]

_CLOSENESS = 1e-4
_NEAR = 2e-3  # the coarse grid misses by less


def calibrate_noise(
    make_event: Callable[[float], Event | Sequence[Event]],
    target_epsilon: float,
    delta: float,
    *,
    history: Sequence[Event] = (),
) -> float:
    """Find the least noise with which a planned event stays within a budget.

    Parameters
    ----------
    make_event : callable
        Noise multiplier to the whole planned event, its count included, or to several that add up.
        More noise must cost less.
    target_epsilon : float
        The budget, above 0.
    delta : float
        As for ``epsilon``.
    history : sequence of Event
        What was released before and counts towards the same budget.

    Returns
    -------
    float
        A noise multiplier whose epsilon is at most ``target_epsilon``, and within 0.01 % of it
        unless the price jumps there (budgets of 40 and more, where the accountant changes).

    Raises
    ------
    ConfigError
        The budget is not a positive number, or ``delta`` is out of range.
    BudgetExceededError
        No amount of noise is enough, for instance because the history has used the budget up.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise ConfigError(f"target_epsilon is {target_epsilon}; it must be a number above 0")

    aim = target_epsilon * (1.0 - _CLOSENESS / 2.0)

    def whole(noise: float) -> tuple[Event, ...]:
        planned = make_event(noise)
        return (*history, *(planned if isinstance(planned, Sequence) else (planned,)))

    def search(price: Callable[[Sequence[Event], float], float], start: float, by: float) -> float:
        def log_excess(noise: float) -> float:
            cost = price(whole(noise), delta)
            return math.log(min(max(cost, 1e-300), 1e300) / aim)

        low, high = _bracket(log_excess, target_epsilon, start, by)
        return _close_in(log_excess, low, high)

    by_grid = functools.partial(coarse_epsilon, grid=ROUGH_GRID)
    if history and rdp_epsilon(history, delta) >= aim:
        # Renyi divergences see the budget spent by the past alone, a tighter account may not
        if epsilon(history, delta) >= aim:
            raise BudgetExceededError(
                f"the history has used epsilon {target_epsilon:g} up, so no noise keeps this run "
                "within it; allow a larger epsilon, or start from data whose budget is not spent"
            )
        return search(epsilon, 1.0, 1.5)
    rough = search(rdp_epsilon, 1.0, 2.0)  # far faster than PLD, and not far from it
    planned = whole(rough)
    if rdp_epsilon(planned, delta) <= coarse_epsilon(planned, delta):
        return rough
    near = search(by_grid, rough, 1.05)
    close = search(coarse_epsilon, near, 1.01)
    return search(epsilon, close, 1.0 + _NEAR)


_Point: TypeAlias = tuple[float, float]


def _bracket(
    log_excess: Callable[[float], float], target: float, noise: float, by: float
) -> tuple[_Point, _Point]:
    """Step up or down by a factor until the budget lies between two noises."""
    value = log_excess(noise)
    step = by if value > 0.0 else 1.0 / by
    for _ in range(30):
        following = log_excess(noise * step)
        if (value > 0.0) != (following > 0.0):
            points = ((noise, value), (noise * step, following))
            return points if step > 1.0 else (points[1], points[0])
        noise, value = noise * step, following
    if step > 1.0:
        raise BudgetExceededError(
            f"no noise keeps this run within epsilon {target:g}; allow a larger epsilon, "
            "fewer rounds, or start from data whose budget is not spent"
        )
    raise ConfigError(f"epsilon {target:g} asks for next to no noise; choose a smaller one")


def _close_in(log_excess: Callable[[float], float], low: _Point, high: _Point) -> float:
    """Regula falsi (Illinois) over log noise; every noise it returns keeps the budget."""
    x0, f0 = math.log(low[0]), low[1]
    x1, f1 = math.log(high[0]), high[1]
    while x1 - x0 > 1e-6:
        x = (x0 * f1 - x1 * f0) / (f1 - f0)
        f = log_excess(math.exp(x))
        if abs(f) <= _CLOSENESS / 2.0:
            return math.exp(x)
        if f > 0.0:
            x0, f0, f1 = x, f, f1 / 2.0
        else:
            x1, f1, f0 = x, f, f0 / 2.0
    return math.exp(x1)
