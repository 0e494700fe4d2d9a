"""Which epsilon, noise, number of rounds or sampling rate goes with the other three."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from carefl_secure.errors import BudgetExceededError, ConfigError
from carefl_secure.privacy.accounting import (
    GRID,
    accountant_name,
    check_delta,
    epsilon,
    has_pld,
    pld_epsilon,
    rdp_epsilon,
)
from carefl_secure.privacy.calibration import calibrate_noise
from carefl_secure.privacy.events import Event, SampledGaussian, SampledSkellam
from carefl_secure.privacy.promise import verdict

__all__ = ["MAX_ROUNDS", "Budget", "BudgetQuestion", "epsilon_by_rounds", "solve_budget"]

Mechanism: TypeAlias = Literal["gaussian", "skellam"]
Unit: TypeAlias = Literal["record", "client"]
Price: TypeAlias = Callable[[Event, float], float]

MAX_ROUNDS = 1_000_000
_LEAST_RATE = 1e-6

# A real run takes these from its encoding. A norm of 100 integer units is coarse, so that the price
# found here is at or above that of a run whose encoding is finer; so is the failure per round.
_NOMINAL_L2 = 100.0
_NOMINAL_BETA = 2e-12


@dataclass(frozen=True, kw_only=True)
class BudgetQuestion:
    """Four quantities, of which one may be missing.

    Parameters
    ----------
    mechanism : {"gaussian", "skellam"}
        Gaussian noise of each client, or Skellam noise shared under the secure sum.
    delta : float
        Probability with which epsilon may fail, in [1e-10, 1e-2].
    epsilon : float, optional
        The most that all rounds may cost.
    noise_multiplier : float, optional
        Standard deviation of all noise counted, over the norm bound.
    rounds : int, optional
        How many sums are released.
    sample_rate : float, optional
        Probability of each record in one sum; 1 for unit client.
    unit : {"record", "client"}
        What one more or less of must not show.

    Raises
    ------
    ConfigError
        A value is out of range, or more than one is missing.
    """

    mechanism: Mechanism
    delta: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    rounds: int | None = None
    sample_rate: float | None = None
    unit: Unit = "record"

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if self.unit == "client":
            if self.sample_rate is None:
                object.__setattr__(self, "sample_rate", 1.0)
            elif self.sample_rate != 1.0:
                raise ConfigError(
                    "unit client gains nothing from sampling, as the server knows who takes part; "
                    "set the sample rate to 1 or leave it out"
                )
        check_delta(self.delta)
        missing = self.missing
        if len(missing) > 1:
            raise ConfigError(
                f"{' and '.join(_WORDS[name] for name in missing)} are left out; "
                "leave out exactly one, and it is computed from the others"
            )
        for name in ("epsilon", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{_WORDS[name]} is {value}; it must be a number above 0")
        if self.rounds is not None and not 1 <= self.rounds <= MAX_ROUNDS:
            raise ConfigError(f"rounds is {self.rounds}; choose from 1 to {MAX_ROUNDS}")
        if self.sample_rate is not None and not 0.0 < self.sample_rate <= 1.0:
            raise ConfigError(
                f"the sample rate is {self.sample_rate}; choose it above 0 and at most 1"
            )

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the quantities left out."""
        return tuple(name for name in _WORDS if getattr(self, name) is None)


_WORDS = {
    "epsilon": "epsilon",
    "noise_multiplier": "the noise multiplier",
    "rounds": "the number of rounds",
    "sample_rate": "the sample rate",
}


@dataclass(frozen=True)
class Budget:
    """All four quantities, and what epsilon rests on.

    Parameters
    ----------
    solved_for : str
        Which one was computed; ``"nothing"`` where all four were given and agree.
    epsilon : float
        What the accountant finds for the other three, in nats: never above a target.
    noise_multiplier : float
    rounds : int
    sample_rate : float
    delta : float
    unit : str
    mechanism : str
    accountant : str
        Its name and what decides its accuracy.
    verdict : str
        ``"strong"``, ``"reasonable, not strong"`` or ``"weak"``.
    adjacency : str
        Always add or remove one.
    """

    solved_for: str
    epsilon: float
    noise_multiplier: float
    rounds: int
    sample_rate: float
    delta: float
    unit: str
    mechanism: str
    accountant: str
    verdict: str
    adjacency: str = "add-or-remove-one"

    def assumptions(self) -> tuple[str, ...]:
        """Return what must hold for epsilon to hold, one sentence each."""
        of = "image-person record" if self.unit == "record" else "client, with all it holds"
        sampled = (
            "no sampling: every unit is in every sum"
            if self.sample_rate == 1.0
            else f"Poisson sampling: every record enters each sum on its own with probability "
            f"{self.sample_rate:g}, and the server never learns which; shuffled batches do not "
            "qualify and cost several times more"
        )
        noise = (
            "Gaussian noise of each client on its own sum"
            if self.mechanism == "gaussian"
            else "Skellam noise of the honest survivors, under a secure sum, for an encoding with "
            f"a norm bound of at least {_NOMINAL_L2:g} integer units"
        )
        return (
            f"unit: one {of}",
            "adjacency: add or remove one unit",
            sampled,
            f"mechanism: {noise}",
            f"accountant: {self.accountant}",
            f"compositions: {self.rounds} sums of the same kind, fixed in advance",
        )


def solve_budget(question: BudgetQuestion) -> Budget:
    """Find the quantity left out, or check that all four agree.

    Parameters
    ----------
    question : BudgetQuestion

    Returns
    -------
    Budget
        With the least noise, the most rounds or the highest sampling rate that keeps the target.

    Raises
    ------
    ConfigError
        The target would be kept by any value at all.
    BudgetExceededError
        No value keeps the target, or all four were given and cost more than the epsilon.

    Guarantees
    ----------
    ``epsilon`` is an upper bound that the named accountant proves for the returned values, and not
    above the target where one was given.
    """
    missing = question.missing[0] if question.missing else "nothing"
    target = question.epsilon
    if target is not None and missing == "noise_multiplier":
        noise = calibrate_noise(
            lambda value: _event(question, noise_multiplier=value), target, question.delta
        )
        question = dataclasses.replace(question, noise_multiplier=noise)
    elif target is not None and missing == "rounds":
        question = dataclasses.replace(question, rounds=_most_rounds(question, target))
    elif target is not None and missing == "sample_rate":
        question = dataclasses.replace(question, sample_rate=_highest_rate(question, target))
    event = _event(question)
    cost = _exact(event, question.delta)
    if target is not None and cost > target:
        raise BudgetExceededError(
            f"these values cost epsilon {cost:.4g} at delta {question.delta:g}, above "
            f"{target:g}; leave one of them out to have it computed, or raise epsilon"
        )
    return Budget(
        solved_for=missing,
        epsilon=cost,
        noise_multiplier=float(question.noise_multiplier or 0.0),
        rounds=event.count,
        sample_rate=event.sample_rate,
        delta=question.delta,
        unit=question.unit,
        mechanism=question.mechanism,
        accountant=accountant_name([event]),
        verdict=verdict(cost),
    )


def epsilon_by_rounds(budget: Budget, points: int = 12) -> list[tuple[int, float]]:
    """Price other numbers of rounds with the noise and sampling of a budget.

    Parameters
    ----------
    budget : Budget
    points : int
        How many, evenly spaced up to twice the rounds of the budget, itself among them.

    Returns
    -------
    list of (int, float)
        Rounds and epsilon, ascending. On a coarser grid than the budget's own epsilon, so they may
        lie a few thousandths above the truth.
    """
    event = _event(
        BudgetQuestion(
            mechanism="gaussian" if budget.mechanism == "gaussian" else "skellam",
            delta=budget.delta,
            noise_multiplier=budget.noise_multiplier,
            rounds=budget.rounds,
            sample_rate=budget.sample_rate,
        )
    )
    half = max(1, points // 2)
    counts = {max(1, round(budget.rounds * i / half)) for i in range(1, 2 * half + 1)}
    return [
        (count, budget.epsilon)
        if count == budget.rounds
        else (count, _coarse(event.times(count), budget.delta))
        for count in sorted(counts)
    ]


def _event(
    question: BudgetQuestion,
    *,
    noise_multiplier: float | None = None,
    rounds: int | None = None,
    sample_rate: float | None = None,
) -> Event:
    noise = noise_multiplier or question.noise_multiplier
    count = rounds or question.rounds
    rate = sample_rate or question.sample_rate
    if noise is None or count is None or rate is None:
        raise ConfigError("too much is left out to describe what is released")
    if question.mechanism == "gaussian":
        return SampledGaussian(rate, noise, count)
    variance = (noise * _NOMINAL_L2) ** 2
    return SampledSkellam(rate, _NOMINAL_L2**2, _NOMINAL_L2, variance, count, _NOMINAL_BETA)


@functools.lru_cache(maxsize=256)
def _exact(event: Event, delta: float) -> float:
    return epsilon([event], delta)


def _coarse(event: Event, delta: float) -> float:
    return (
        pld_epsilon([event], delta, grid=10.0 * GRID) if has_pld([event]) else _rough(event, delta)
    )


def _rough(event: Event, delta: float) -> float:
    return rdp_epsilon([event], delta)


def _most_rounds(question: BudgetQuestion, target: float) -> int:
    """Return the largest number of rounds within the target."""
    one = _event(question, rounds=1)

    def fits(price: Price, count: int) -> bool:
        return price(one.times(count), question.delta) <= target

    if not fits(_exact, 1):
        raise BudgetExceededError(
            f"one round alone costs epsilon {_exact(one, question.delta):.4g}, above "
            f"{target:g}; choose more noise, a lower sample rate or a larger epsilon"
        )
    count = 1
    for price in (_rough, _coarse, _exact):  # each dearer to compute and closer to the truth
        if not fits(price, count):
            continue
        step = max(1, count // 1000)
        while count + step <= MAX_ROUNDS and fits(price, count + step):
            count, step = count + step, 2 * step
        high = min(count + step, MAX_ROUNDS + 1)
        while high - count > 1:
            middle = (count + high) // 2
            count, high = (middle, high) if fits(price, middle) else (count, middle)
    while not fits(_exact, count):  # where a cheaper account proved more than the named one
        count -= max(1, count // 100)
    if count >= MAX_ROUNDS:
        raise ConfigError(
            f"{MAX_ROUNDS} rounds and more fit into epsilon {target:g}; choose less noise"
        )
    return count


def _highest_rate(question: BudgetQuestion, target: float) -> float:
    """Return the highest sampling rate within the target, to four digits, rounded down."""

    def fits(price: Price, rate: float) -> bool:
        return price(_event(question, sample_rate=rate), question.delta) <= target

    if fits(_exact, 1.0):
        return 1.0
    if not fits(_exact, _LEAST_RATE):
        raise BudgetExceededError(
            f"even a sample rate of {_LEAST_RATE:g} costs more than epsilon {target:g}; choose "
            "more noise, fewer rounds or a larger epsilon"
        )
    low, high = math.log(_LEAST_RATE), 0.0
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(_rough, math.exp(middle)) else (low, middle)
    high = low
    while high < 0.0 and fits(_coarse, math.exp(high)):  # the truth allows more than Renyi proves
        low, high = high, min(0.0, high + 0.1)
    while high - low > 5e-5:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(_coarse, math.exp(middle)) else (low, middle)
    unit = 10.0 ** (math.floor(low / math.log(10.0)) - 3)
    steps = math.floor(math.exp(low) / unit)
    while fits(_exact, _four_digits((steps + 1) * unit)):
        steps += 1
    while not fits(_exact, _four_digits(steps * unit)):
        steps -= 1
    return _four_digits(steps * unit)


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
