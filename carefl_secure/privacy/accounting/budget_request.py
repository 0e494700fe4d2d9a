"""What is asked of a budget: four quantities of which one may be missing, and their event."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.accountant import check_delta
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam
from carefl_secure.privacy.sampling import any_of

Mechanism: TypeAlias = Literal["gaussian", "skellam"]
Unit: TypeAlias = Literal["record", "person", "client"]

MAX_ROUNDS = 1_000_000
EMBEDDED_DIMENSION = 40_960
"""Trainable values of the adapter of the embedded model, as configured by default."""

_MOST_DIMENSION = 1 << 30
_INFLATION = 1.01  # what rounding may cost, as the encoding is planned
_TAIL = math.sqrt(2.0 * math.log(1e12))
_BETA = 2e-12


def nominal_norm(dimension: int) -> float:
    r"""Return an integer norm bound that the planned encoding reaches for a dimension.

    The scale c is the least at which rounding costs 1 % of the noise,
    :math:`\sqrt{c^2 + d/4 + t(c + \sqrt d / 2)} \le 1.01\,c` or :math:`c + \sqrt d \le 1.01\,c`,
    with :math:`t = \sqrt{2 \ln 10^{12}}`; for more clients it is finer. A tenth of a percent is
    taken off. A coarser scale raises epsilon, so a run costs at most what is found with this bound.
    ``dimension`` counts the trainable values, 1 to 2^30; padding only makes the scale finer.
    """
    d = float(dimension)
    spare = _INFLATION**2 - 1.0
    rest = d / 4.0 + _TAIL * math.sqrt(d) / 2.0
    scale = (_TAIL + math.sqrt(_TAIL**2 + 4.0 * spare * rest)) / (2.0 * spare)
    return 0.999 * min(scale, math.sqrt(d) / (_INFLATION - 1.0))


@dataclass(frozen=True, kw_only=True)
class BudgetQuestion:
    """Epsilon, noise multiplier, rounds and sampling rate, of which one may be missing.

    With ``records_per_person``, for unit person, so many records of one person at most are drawn and clipped one by
    one, and the noise multiplier is over that many times the norm bound of a record. With ``bands``, for unit record
    and Skellam noise, a record is in one round of b at most, with b times the sampling rate, and the noise multiplier
    is over the norm of the coefficients as well.
    """

    mechanism: Mechanism  # Gaussian noise of each client, or Skellam noise shared under the secure sum
    delta: float  # probability with which epsilon may fail, in [1e-10, 1e-2]
    epsilon: float | None = None  # the most that all rounds may cost
    noise_multiplier: float | None = None  # standard deviation of all noise counted, over the norm bound
    rounds: int | None = None  # how many sums are released
    sample_rate: float | None = None  # of each record, or of each person drawn whole, in one sum; 1 for unit client
    unit: Unit = "record"
    records_per_person: int | None = None
    dimension: int | None = None  # for Skellam noise: how many values are trained; EMBEDDED_DIMENSION by default
    bands: int = 1  # rounds whose noise is correlated; 1 for independent noise

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        self._check_unit()
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
            raise ConfigError(f"the sample rate is {self.sample_rate}; choose it above 0 and at most 1")
        if self.bands != 1:
            self._check_bands()

    def _check_bands(self) -> None:
        if self.mechanism != "skellam" or self.unit != "record":
            raise ConfigError(
                "banded noise is for single records under the secure sum: ask for skellam and unit record"
            )
        rounds, rate = self.rounds or MAX_ROUNDS, self.sample_rate or 0.0
        if not (1 <= self.bands <= rounds and self.bands * rate <= 1.0 + 1e-12):
            raise ConfigError(
                f"the number of bands is {self.bands}; choose 1 or more, at most the rounds and 1 / sample rate"
            )

    def _check_unit(self) -> None:
        if self.unit == "client":
            if self.sample_rate is None:
                object.__setattr__(self, "sample_rate", 1.0)
            elif self.sample_rate != 1.0:
                raise ConfigError(
                    "unit client gains nothing from sampling, as the server knows who takes part; "
                    "set the sample rate to 1 or leave it out"
                )
        if self.records_per_person is not None:
            if self.unit != "person":
                raise ConfigError(
                    "the records per person bound what one person adds; ask for unit person, or leave them out"
                )
            if not 1 <= self.records_per_person <= 10_000:
                raise ConfigError(f"the records per person are {self.records_per_person}; choose 1 to 10000")
        if self.mechanism == "gaussian":
            if self.dimension is not None:
                raise ConfigError(
                    "the price of Gaussian noise does not depend on the dimension; leave it out, "
                    "or ask for the mechanism skellam"
                )
        elif self.dimension is None:
            object.__setattr__(self, "dimension", EMBEDDED_DIMENSION)
        elif not 1 <= self.dimension <= _MOST_DIMENSION:
            raise ConfigError(f"the dimension is {self.dimension}; choose 1 to 2^30")

    def of_one_group(self) -> BudgetQuestion:
        """Return the question for the rounds that one record can be in: one in b, at b times the rate."""
        rounds, rate = self.rounds and -(-self.rounds // self.bands), self.sample_rate
        return dataclasses.replace(self, bands=1, rounds=rounds, sample_rate=rate and min(1.0, self.bands * rate))

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


def event_of_question(question: BudgetQuestion) -> Event:
    """Describe what is released for one record, with no quantity but epsilon left out."""
    question = question.of_one_group()
    noise, count, rate = question.noise_multiplier, question.rounds, question.sample_rate
    if noise is None or count is None or rate is None:
        raise ConfigError("too much is left out to describe what is released")
    rate = any_of(rate, question.records_per_person or 1)
    if question.mechanism == "gaussian" or question.dimension is None:
        return SampledGaussian(rate, noise, count)
    size, l2 = question.dimension, nominal_norm(question.dimension)
    padded = 1 << (size - 1).bit_length() if size <= 128 else size * 16 // 15 + 1  # at most, as encodings pad
    l1 = max(l2, min(l2 * l2, math.sqrt(padded) * l2))
    return SampledSkellam(rate, l1, l2, (noise * l2) ** 2, count, _BETA, padded)
