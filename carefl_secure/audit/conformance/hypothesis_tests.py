"""Exact or nearly exact tests of the few laws that the privacy proof requires."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, kstest

from carefl_secure.privacy.mechanism_tests import dispersion_p_value, noise_p_value


def noise_chances(noise: npt.NDArray[np.float64]) -> tuple[float, float]:
    r"""Return two p-values that the entries are independent standard normals.

    The first, of :math:`\sum x_i^2 \sim \chi^2_d` (two-sided), detects a wrong scale: with 40 960
    entries, noise at 0.95 of its scale has a p-value below 1e-40. The second, of Kolmogorov and
    Smirnov, detects a wrong shape.
    """
    return noise_p_value(noise, 1.0), float(kstest(noise, "norm").pvalue)


class SamplerTest:
    """P-values that batches were drawn by independent coins of one probability.

    ``mean`` is that of the number of records drawn in all; ``size_variance`` of the variance of the
    batch sizes, which detects batches of fixed size; ``spread`` of how unevenly records are drawn,
    which detects shuffled epochs and samples that repeat. ``repeats`` counts equal batches of five
    records or more, which chance never makes.
    """

    def __init__(self, mean: float, size_variance: float, spread: float, repeats: int) -> None:
        self.mean = mean
        self.size_variance = size_variance
        self.spread = spread
        self.repeats = repeats

    @property
    def worst(self) -> float:
        """The least of the p-values; 0 where batches repeat."""
        return 0.0 if self.repeats else min(self.mean, self.size_variance, self.spread)


def sampler_test(batches: dict[int, list[npt.NDArray[np.int64]]], records: int, sample_rate: float) -> SamplerTest:
    """Test the batches of several clients, each of ``records`` records.

    ``batches`` holds the drawn indices of every round, by client, with empty draws included unless
    they are too unlikely to matter.
    """
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
