"""Clipping to a norm that follows a quantile of the norms met so far, under an unchanged mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carefl_secure.privacy.plan import PrivacyPlan

Vector = NDArray[np.float64]
Adapter = NDArray[np.float32]

_SHARE_ERROR, _MOST_BETA = 0.05, 0.3
_LEAST_RATE, _REACH = 0.2, 10.0
_LOG_RANGE = (math.log(1e-12), math.log(1e6))  # of privacy.clipping_norm


@dataclass(frozen=True)
class AdaptiveNorm:
    r"""The norm :math:`C_t` of each round, and the vector by which a client says how many units exceed it.

    A unit is a record, a person or a client. Its gradient or update g of D entries is sent as D + 1 entries, with the
    initial norm C of the plan:

    .. math::
        v = C\left(\sqrt{1 - \beta^2}\;\min\Big(\frac{1}{C_t}, \frac{1}{\lVert g \rVert}\Big)\,g,\;
        \pm\beta\right), \qquad + \text{ where } \lVert g \rVert \le C_t

    The server reads the share p of units within the norm from the last entry of the noisy sum and follows the quantile
    :math:`\gamma` by :math:`C_{t+1} = C_t\,e^{-\eta(p - \gamma)}`, with :math:`\eta = \max(0.2, \min(1, 10 / T))`, so
    that 10 rounds or more at :math:`\gamma = 0.5` can correct an initial norm by a factor of 148. :math:`\log C_t` is
    the last entry of the adapter vector that clients receive.

    The standard error that noise leaves in p is :math:`z \sqrt{n/h} / (2 \beta m)` for noise multiplier z, m units
    expected in a sum, n clients and h of them counted as honest. :math:`\beta` makes it 0.05, where that needs no more
    than 0.3; the gradient is shortened by :math:`\sqrt{1 - \beta^2}`, 4.6 % at most.

    Guarantees
    ----------
    :math:`\lVert v \rVert \le C` for every g and every :math:`C_t`, so that noise, encoding, event and ledger are
    those of a fixed norm C, whatever a server says :math:`C_t` is. A lie about it costs accuracy only. Everything
    that the server computes is post-processing of opened sums.

    References
    ----------
    Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021
    (arXiv 1905.03871). There the count has noise and a price of its own; here it shares the ball of the gradient.
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

    def begin(self, adapter: Adapter) -> Adapter:
        """Return an adapter of D entries with the logarithm of the initial norm after them."""
        return np.append(adapter, np.float32(math.log(self.initial)))

    def norm(self, adapter: NDArray[np.floating]) -> float:
        """Return the norm of a round from the adapter [D + 1] that opens it, within [1e-12, 1e6]; NaN for NaN."""
        return float(np.exp(np.clip(np.float64(adapter[-1]), *_LOG_RANGE)))

    def extend(self, total: Vector, norm: float, balance: int) -> Vector:
        """Return a sum [D + 1] from one [D] of vectors clipped to ``norm``.

        ``balance`` is the number of units that were within the norm, less that of those that were clipped.
        """
        return np.append(total * self.signal(norm), self.initial * self.beta * balance)

    def signal(self, norm: float) -> float:
        r"""Return the factor :math:`\sqrt{1 - \beta^2}\,C / C_t` between sums as sent and sums of gradients."""
        return math.sqrt(1 - self.beta**2) * self.initial / norm

    def follow(self, norm: float, mean: float) -> float:
        """Return the logarithm of the next norm; ``mean`` is the last entry of an opened sum, over the units in it."""
        share = min(1.0, max(0.0, (1 + mean / (self.initial * self.beta)) / 2))
        return float(np.clip(math.log(norm) - self.rate * (share - self.quantile), *_LOG_RANGE))
