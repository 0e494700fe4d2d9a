"""The least noise that keeps a planned release within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy.accounting.accountant import coarse_epsilon, epsilon, rdp_epsilon
from carefl_secure.privacy.accounting.events import Event
from carefl_secure.privacy.accounting.skellam_rdp import ORDERS, epsilon_from_rdp

_CLOSENESS = 1e-4
_LEAST_TARGET = 1e-3
_RANGE = (math.log(1e-6), math.log(1e9))

Price: TypeAlias = Callable[[Sequence[Event], float], float]


def calibrate_noise(
    make_event: Callable[[float], Event | Sequence[Event]],
    target: float,
    delta: float,
    *,
    history: Sequence[Event] = (),
    price: Price | None = None,
) -> float:
    """Find the least noise multiplier with which a planned event stays within a budget.

    It is within 0.01 % of the budget unless the price jumps there (another accountant or grid).

    BudgetExceededError where no amount of noise is enough, for instance because the history has used the budget up.

    Parameters
    ----------
    make_event : Callable[[float], Event | Sequence[Event]]
        Noise multiplier to the whole planned event, its count included, or to several that add up. More noise must
        cost less.
    target : float
        From 0.001. Every value up to 500 has an answer, for up to a million sums at any delta, unless the history
        leaves too little.
    history : Sequence[Event], optional
        What was released before and counts towards the same budget.
    price : Price, optional
        Events and delta to epsilon, instead of ``epsilon``; more noise must cost less.

    Guarantees
    ----------
    The price was evaluated at the returned noise, and was at most ``target``.
    """
    if not (math.isfinite(target) and target >= _LEAST_TARGET):
        raise ConfigError(f"the target epsilon is {target}; choose a number of at least {_LEAST_TARGET:g}")
    if history and epsilon(history, delta) >= target:
        raise BudgetExceededError(
            f"the history has used epsilon {target:g} up, so no noise keeps this run "
            "within it; allow a larger epsilon, or start from data whose budget is not spent"
        )

    def whole(noise: float) -> tuple[Event, ...]:
        planned = make_event(noise)
        return (*history, *(planned if isinstance(planned, Sequence) else (planned,)))

    def search(account: Price, noise: float, step: float, closeness: float) -> float:
        return _search(lambda log_noise: account(whole(math.exp(log_noise)), delta), target, noise, step, closeness)

    if price is not None:
        return search(price, 1.0, 0.2, _CLOSENESS)
    noise = 1.0
    floor = epsilon_from_rdp(np.zeros(len(ORDERS)), delta)  # what RDP gives for any noise
    # each account is slower and closer than the one before it, and starts where that one ended
    for account, step, closeness in (
        (rdp_epsilon, 1.0, 0.02),
        (coarse_epsilon, 0.05, _CLOSENESS),
        (epsilon, 2e-3, _CLOSENESS),
    ):
        if account is rdp_epsilon and rdp_epsilon(history, delta) >= target - floor:
            continue  # a tighter account may still reach the target
        noise = search(account, noise, step, closeness)
    return noise


def _search(price: Callable[[float], float], target: float, noise: float, step: float, closeness: float) -> float:
    """Return the least noise tried that keeps the target; bracket by growing steps, then Brent."""
    aim = target * (1.0 - closeness / 2.0)
    kept: list[float] = []

    def log_excess(log_noise: float) -> float:
        cost = price(log_noise)
        if math.isnan(cost):
            cost = math.inf  # no price is no promise
        if cost <= target:
            kept.append(log_noise)
            if cost >= target * (1.0 - closeness):
                return 0.0
        return math.log(min(max(cost, 1e-300), 1e300) / aim)

    here = math.log(noise)
    value = log_excess(here)
    direction = 1.0 if value > 0.0 else -1.0
    other, opposite = here, value
    while (value > 0.0) == (opposite > 0.0) and value != 0.0 != opposite:
        if other in _RANGE:
            break
        here, value = other, opposite
        other = min(max(other + direction * step, _RANGE[0]), _RANGE[1])
        opposite, step = log_excess(other), min(2.0 * step, 1.0)
    if value > 0.0 and opposite > 0.0:
        raise BudgetExceededError(
            f"no noise keeps this run within epsilon {target:g}; allow a larger epsilon, "
            "fewer rounds, or start from data whose budget is not spent"
        )
    if value < 0.0 and opposite < 0.0:
        raise ConfigError(f"epsilon {target:g} asks for next to no noise; choose a smaller one")
    if value != 0.0 != opposite:
        from scipy.optimize import brentq  # imported late, as most commands never need it

        brentq(log_excess, here, other, xtol=1e-7, rtol=1e-10)
    return math.exp(min(kept))
