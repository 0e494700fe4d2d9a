"""Exact or nearly exact tests of the few laws that the privacy proof requires.

A lower bound on epsilon from a training run cannot see halved noise at epsilon 8; these p-values see
5 %. Each is small where the code breaks its promise, and near-uniform where it keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtr, chdtrc
from scipy.stats import binomtest, kstest

from carefl_secure.errors import ConfigError


def _two_sided(statistic: float, freedom: float) -> float:
    """Return the p-value of a chi-square statistic that may be too large or too small; 0 for NaN."""
    if math.isnan(statistic):
        return 0.0
    lower, upper = chdtr(freedom, statistic), chdtrc(freedom, statistic)
    return min(1.0, 2.0 * float(min(lower, upper)))


def noise_p_value(values: npt.NDArray[np.float64], variance: float) -> float:
    r"""Test whether noise has the variance that the account counts; two-sided p-value.

    .. math:: \sum_i x_i^2 / \sigma^2 \sim \chi^2_n

    ``values`` [n] is what a step with an empty sample released: noise alone. Skellam noise of a variance of 100 and
    more is near enough to normal. Noise 5 % too small gives some 1e-5 at n = 4000.
    """
    if values.size == 0 or not (math.isfinite(variance) and variance > 0.0):
        raise ConfigError(f"{values.size} values of variance {variance} cannot be tested")
    return _two_sided(float(np.square(values, dtype=np.float64).sum()) / variance, float(values.size))


def dispersion_p_value(groups: Sequence[tuple[npt.NDArray[np.float64], int]], rate: float) -> float:
    r"""Test whether counts scatter as binomial counts do, neither more nor less; two-sided p-value.

    .. math:: X = \sum_i \frac{(c_i - mq)^2}{mq(1-q)}

    is compared with a multiple of a chi-square variable of equal mean and variance; a standard score z of a binomial
    count has :math:`E z^4 = 3 + (1 - 6q(1-q)) / (mq(1-q))`, so the match holds for few trials and small rates as well.
    ``groups`` are pairs of counts and their number m of trials, added up; ``rate`` is q in (0, 1).
    """
    total, mean, variance = 0.0, 0.0, 0.0
    for counts, trials in groups:
        spread = trials * rate * (1.0 - rate)
        total += float(np.square(counts - trials * rate).sum()) / spread
        mean += counts.size
        variance += counts.size * (2.0 + (1.0 - 6.0 * rate * (1.0 - rate)) / spread)
    return _two_sided(2.0 * mean * total / variance, 2.0 * mean**2 / variance)


def noise_chances(noise: npt.NDArray[np.float64]) -> tuple[float, float]:
    r"""Return two p-values that the entries are independent standard normals.

    The first, of :math:`\sum x_i^2 \sim \chi^2_d` (two-sided), detects a wrong scale: with 40 960 entries, noise at
    0.95 of its scale has a p-value below 1e-40. The second, of Kolmogorov and Smirnov, detects a wrong shape.
    """
    return noise_p_value(noise, 1.0), float(kstest(noise, "norm").pvalue)


@dataclass(frozen=True)
class SamplerTest:
    """P-values that batches were drawn by independent coins of one probability."""

    mean: float  # of the number of records drawn in all
    size_variance: float  # of the variance of the batch sizes, which detects batches of fixed size
    spread: float  # of how unevenly records are drawn, which detects shuffled epochs and samples that repeat
    repeats: int  # equal batches of five records or more, which chance never makes

    @property
    def worst(self) -> float:
        """The least of the p-values; 0 where batches repeat."""
        return 0.0 if self.repeats else min(self.mean, self.size_variance, self.spread)


def sampler_test(batches: dict[int, list[npt.NDArray[np.int64]]], records: int, sample_rate: float) -> SamplerTest:
    """Test batches by client: drawn indices, also empty, of every round, from each client's ``records`` records."""
    every = [batch for drawn in batches.values() for batch in drawn]
    sizes = np.array([len(batch) for batch in every], np.float64)
    if sample_rate >= 1.0:
        whole = float(np.all(sizes == records))
        return SamplerTest(whole, whole, whole, 0)
    mean = float(binomtest(int(sizes.sum()), records * len(every), sample_rate).pvalue)
    size_variance = dispersion_p_value([(sizes, records)], sample_rate)
    parts = []
    for drawn in batches.values():
        counts = np.zeros(records)
        for batch in drawn:
            np.add.at(counts, batch, 1.0)
        parts.append((counts, len(drawn)))
    spread = dispersion_p_value(parts, sample_rate)
    seen: set[bytes] = set()
    repeats = 0
    for batch in every:
        if len(batch) >= 5:
            key = batch.tobytes()
            repeats += key in seen
            seen.add(key)
    return SamplerTest(mean, size_variance, spread, repeats)
