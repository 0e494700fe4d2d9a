"""P-values that show from one short run whether code draws and adds noise as its plan says.

A lower bound on epsilon from a training run cannot see halved noise at epsilon 8; these figures see
5 %. Each is small where the code breaks its promise, and near-uniform where it keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtr, chdtrc

from carefl_secure.errors import ConfigError


def _two_sided(statistic: float, freedom: float) -> float:
    """Return the p-value of a chi-square statistic that may be too large or too small; 0 for NaN."""
    if math.isnan(statistic):
        return 0.0
    lower, upper = chdtr(freedom, statistic), chdtrc(freedom, statistic)
    return min(1.0, 2.0 * float(min(lower, upper)))


def noise_p_value(values: NDArray[np.float64], variance: float) -> float:
    r"""Test whether noise has the variance that the account counts; two-sided p-value.

    .. math:: \sum_i x_i^2 / \sigma^2 \sim \chi^2_n

    ``values`` [n] is what a step with an empty sample released: noise alone. Skellam noise of a
    variance of 100 and more is near enough to normal. Noise 5 % too small gives some 1e-5 at
    n = 4000.
    """
    if values.size == 0 or not (math.isfinite(variance) and variance > 0.0):
        raise ConfigError(f"{values.size} values of variance {variance} cannot be tested")
    total = float(np.square(values, dtype=np.float64).sum()) / variance
    return _two_sided(total, float(values.size))


def dispersion_p_value(groups: Sequence[tuple[NDArray[np.float64], int]], rate: float) -> float:
    r"""Test whether counts scatter as binomial counts do, neither more nor less; two-sided p-value.

    .. math:: X = \sum_i \frac{(c_i - mq)^2}{mq(1-q)}

    is compared with a multiple of a chi-square variable of equal mean and variance; a standard
    score z of a binomial count has :math:`E z^4 = 3 + (1 - 6q(1-q)) / (mq(1-q))`, so the match
    holds for few trials and small rates as well. ``groups`` are pairs of counts and their number m
    of trials, added up; ``rate`` is q in (0, 1).
    """
    total, mean, variance = 0.0, 0.0, 0.0
    for counts, trials in groups:
        spread = trials * rate * (1.0 - rate)
        total += float(np.square(counts - trials * rate).sum()) / spread
        mean += counts.size
        variance += counts.size * (2.0 + (1.0 - 6.0 * rate * (1.0 - rate)) / spread)
    return _two_sided(2.0 * mean * total / variance, 2.0 * mean**2 / variance)


def sampling_p_values(draws: Sequence[NDArray[np.int64]], records: int, sample_rate: float) -> tuple[float, float]:
    r"""Test whether samples were drawn by Poisson sampling; two-sided p-values of sizes and counts.

    The batch sizes :math:`s_t` of T rounds should be binomial of n trials, the counts
    :math:`c_i` of n records binomial of T trials, both with the rate q; see `dispersion_p_value`.
    Fixed batch sizes break the first, going through shuffled records in turn both. ``draws`` must
    include empty rounds.
    """
    rounds = len(draws)
    if not (0.0 < sample_rate < 1.0 and rounds > 0 and records > 0):
        raise ConfigError(f"{rounds} rounds over {records} records at rate {sample_rate} cannot be tested")
    sizes = np.array([len(draw) for draw in draws], dtype=np.float64)
    counts = np.bincount(np.concatenate(draws).astype(np.int64), minlength=records)
    return (
        dispersion_p_value([(sizes, records)], sample_rate),
        dispersion_p_value([(counts.astype(np.float64), rounds)], sample_rate),
    )
