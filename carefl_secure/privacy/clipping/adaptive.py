"""Clipping to a norm that follows a quantile of the norms met so far, under an unchanged mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carefl_secure.privacy.plan import PrivacyPlan

Vector = NDArray[np.float64]

_SHARE_ERROR, _MOST_BETA = 0.05, 0.3
_LEAST_RATE, _REACH = 0.2, 10.0
_LOG_RANGE = (math.log(1e-12), math.log(1e6))  # of privacy.clipping_norm


@dataclass(frozen=True)
class AdaptiveNorm:
    r"""The norm :math:`C_t` of each round, and the entry in which a client says how many units exceed it.

    A unit is a record, a person or a client. Its gradient or update g, [D], is sent as [D + 1], for the plan's C:

    .. math::
        v = C\left(\sqrt{1 - \beta^2}\;\min\Big(\frac1{C_t}, \frac1{\lVert g \rVert}\Big)\,g,\;\pm\beta\right),
        \qquad + \text{ where } \lVert g \rVert \le C_t

    From the last entry of the noisy sum the server reads the share p of units within the norm. It follows the quantile
    :math:`\gamma` from :math:`C_1 = C` on by :math:`C_{t+1} = C_t\,e^{-\eta(p - \gamma)}`, with :math:`\eta =
    \max(0.2, \min(1, 10 / T))` for T rounds. The adapter vector that clients receive ends with :math:`\log C_t`.

    The noise in p has standard error :math:`z \sqrt{n/h} / (2 \beta m)` for noise multiplier z, m units expected in a
    sum, n clients and h honest ones counted. :math:`\beta` makes it 0.05, or is 0.3 where that would need more: a
    gradient is shortened by :math:`1 - \sqrt{1 - \beta^2}`, 4.6 % at most.

    Guarantees
    ----------
    :math:`\lVert v \rVert \le C` for every g and every :math:`C_t`, so noise, encoding, event and ledger are those of
    the fixed norm C, and a server that lies about :math:`C_t` costs accuracy only. What the server computes is
    post-processing of opened sums.

    References
    ----------
    Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021
    (arXiv 1905.03871), where the count has noise of its own; here it is inside the ball of the gradient.
    """

    initial: float
    quantile: float
    beta: float
    rate: float

    @classmethod
    def of(cls, plan: PrivacyPlan) -> AdaptiveNorm | None:
        """Return the rule of a plan; None where its norm is fixed."""
        if plan.target_unclipped_quantile is None:
            return None
        units = plan.clients if plan.unit == "client" else plan.expected_batch
        noise = plan.noise_multiplier * math.sqrt(plan.clients / plan.noise_clients)
        beta = min(_MOST_BETA, noise / (2 * _SHARE_ERROR * units))
        rate = max(_LEAST_RATE, min(1.0, _REACH / plan.rounds))
        return cls(plan.clipping_norm, plan.target_unclipped_quantile, beta, rate)

    def begin(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the first round opens with, [D + 1], from an adapter [D]."""
        return np.append(adapter, np.float32(math.log(self.initial)))

    def norm(self, adapter: NDArray[np.floating]) -> float:
        """Return the norm of the round that an adapter [D + 1] opens, within [1e-12, 1e6]; NaN for NaN."""
        return float(np.exp(np.clip(np.float64(adapter[-1]), *_LOG_RANGE)))

    def extend(self, total: Vector, norm: float, balance: int) -> Vector:
        """Return a sum [D + 1] from one clipped to ``norm``, [D], and the units within it less those beyond."""
        return np.append(total * self.signal(norm), self.initial * self.beta * balance)

    def signal(self, norm: float) -> float:
        r"""Return :math:`\sqrt{1 - \beta^2}\,C / C_t`, a sum as sent over the sum of gradients."""
        return math.sqrt(1 - self.beta**2) * self.initial / norm

    def follow(self, norm: float, mean: float) -> float:
        """Return the logarithm of the next norm, from the last entry of a sum divided by its expected units."""
        share = min(1.0, max(0.0, (1 + mean / (self.initial * self.beta)) / 2))
        return float(np.clip(math.log(norm) - self.rate * (share - self.quantile), *_LOG_RANGE))
