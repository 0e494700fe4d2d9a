"""Sampled Gaussian sums by other libraries: the loss distribution of ``dp_accounting``, and an estimate by Opacus."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss


class _VectorisedLoss(GaussianPrivacyLoss):  # type: ignore[misc]  # the library has no annotations
    """The library's privacy loss with all divergences at once; the library inverts one loss at a time."""

    def get_delta_for_epsilon(self, epsilon: float | Sequence[float]) -> np.ndarray:
        losses, rate = np.asarray(epsilon, dtype=np.float64), self.sampling_prob
        sign = -1.0 if self.adjacency_type is AdjacencyType.ADD else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            # e^loss = 1 - q + q e^unsampled; no outcome has a loss for which the left side is below 1 - q
            share = -np.expm1(np.log1p(-rate) - sign * losses)
            unsampled = sign * (sign * losses - np.log(rate) + np.log(share))
        attained = share > 0.0
        cutoffs = self._inverse_privacy_loss_without_subsampling_remove(unsampled[attained])
        if sign < 0.0:
            cutoffs = cutoffs + self.sensitivity
        deltas = np.zeros_like(losses) if sign < 0.0 else -np.expm1(losses)
        deltas[attained] = self.mu_upper_cdf(cutoffs) - np.exp(losses[attained] + self.mu_lower_log_cdf(cutoffs))
        return np.clip(deltas, 0.0, 1.0)


def gaussian_distribution(rate: float, noise_multiplier: float, step: float) -> pld.PrivacyLossDistribution:
    """Discretise a Gaussian sum, pessimistically ("Connect the Dots"), for a record that is added or removed.

    Equal to ``privacy_loss_distribution.from_gaussian_mechanism`` up to floating point, some five times faster.
    """
    kinds = [AdjacencyType.REMOVE] if rate == 1.0 else [AdjacencyType.REMOVE, AdjacencyType.ADD]
    losses = [_VectorisedLoss(noise_multiplier, sampling_prob=rate, adjacency_type=kind) for kind in kinds]
    return pld.PrivacyLossDistribution(
        *(pld._create_pld_pmf_from_monotone_privacy_loss(loss, True, step, True) for loss in losses)
    )


_PRV_ERROR = 0.01


def opacus_prv_epsilon(sample_rate: float, noise_multiplier: float, rounds: int, delta: float) -> float | None:
    """Estimate the epsilon of Poisson-sampled Gaussian sums with Opacus' PRV accountant.

    An upper estimate, 0.01 above the one proved by the loss distribution where both are accurate;
    None where the accountant gives up. Opacus' ``gdp`` accountant is not offered: it falls below
    the truth. Opacus is imported only here, as it brings torch with it.

    References
    ----------
    Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS 2021.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, rounds)]
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta=delta, eps_error=_PRV_ERROR))
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        return None  # numerical refusals of that accountant; the caller says that there is none
    finally:
        logging.disable(level)
