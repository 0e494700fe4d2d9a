"""Renyi curves of Skellam and Gaussian noise, amplified by Poisson sampling, at integer orders."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, logsumexp

from carefl_secure.errors import PrivacyError
from carefl_secure.privacy.accounting.events import Event, SampledSkellam

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDERS: tuple[int, ...] = (*range(2, 257), 320, 384, 512, 768, 1024)
"""Orders at which every curve is held: dense where usual budgets lie, sparse for tiny ones."""


def skellam_rdp(orders: NDArray[np.float64], l1: float, l2: float, variance: float) -> NDArray[np.float64]:
    r"""Bound the Renyi divergence of Skellam noise from its shift by an integer vector, in nats.

    .. math::
        \varepsilon(\alpha) = \frac{\alpha\, l_2^2}{2\mu}
        + \min\left(\frac{(2\alpha-1)\, l_2^2 + 6\, l_1}{4\mu^2}, \frac{3\, l_1}{2\mu}\right)

    at whole orders [orders] of at least 2, with norms ``l1`` and ``l2`` of the shift in integer
    units and variance :math:`\mu` in each coordinate.

    References
    ----------
    Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning",
    NeurIPS 2021 (arXiv 2110.04995), theorem 3.5; proved for whole orders.
    """
    extra = np.minimum(
        ((2.0 * orders - 1.0) * l2**2 + 6.0 * l1) / (4.0 * variance) / variance, 3.0 * l1 / (2.0 * variance)
    )
    return orders * (l2**2 / (2.0 * variance)) + extra


def gaussian_rdp(orders: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
    r"""Renyi divergence of Gaussian noise for a shift of norm one: :math:`\alpha / 2 z^2`, in nats.

    At orders [orders] above 1; z is the standard deviation over the norm of the shift.

    References
    ----------
    Mironov, "Renyi Differential Privacy", CSF 2017, proposition 7.
    """
    return orders / (2.0 * noise_multiplier) / noise_multiplier


_LARGEST = 1e290


@functools.cache
def _log_binomials() -> NDArray[np.float64]:
    """Return log C(alpha, k), shape [orders, 0..largest order]; minus infinity where k > alpha."""
    alpha = np.array(ORDERS, dtype=np.float64)[:, None]
    k = np.arange(ORDERS[-1] + 1, dtype=np.float64)[None, :]
    inside = k <= alpha
    rest = np.where(inside, alpha - k, 0.0)
    table = gammaln(alpha + 1.0) - gammaln(k + 1.0) - gammaln(rest + 1.0)
    return np.asarray(np.where(inside, table, -np.inf), dtype=np.float64)


@functools.lru_cache(maxsize=256)
def _sampled(event: Event) -> NDArray[np.float64]:
    q = event.sample_rate
    whole = np.arange(2, ORDERS[-1] + 1, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        curve = (
            skellam_rdp(whole, event.l1, event.l2, event.variance)
            if isinstance(event, SampledSkellam)
            else gaussian_rdp(whole, event.noise_multiplier)
        )
    curve = np.minimum(curve, _LARGEST)  # infinity less infinity would be NaN below
    orders = np.array(ORDERS)
    if q == 1.0:
        result = curve[orders - 2]
    else:
        k = np.arange(ORDERS[-1] + 1, dtype=np.float64)
        # k = 0 and k = 1 carry a likelihood ratio of moment exactly 1, so the curve starts at 2
        moments = np.concatenate([[0.0, 0.0], (whole - 1.0) * curve])
        left_out = np.maximum(orders[:, None] - k[None, :], 0.0) * math.log1p(-q)
        terms = _log_binomials() + left_out + k * math.log(q) + moments
        result = logsumexp(terms, axis=1) / (orders - 1.0)
    result = np.where(result < _LARGEST / 2.0, np.maximum(result, 0.0), np.inf)
    result.setflags(write=False)
    return np.asarray(result, dtype=np.float64)


def sampled_rdp(event: Event) -> NDArray[np.float64]:
    r"""Bound the Renyi divergence of a whole event at ``ORDERS``, adding or removing one record.

    With the unsampled curve :math:`\varepsilon`, rate :math:`q` and count :math:`T`, in nats:

    .. math::
        \frac{T}{\alpha-1} \log \sum_{k=0}^{\alpha} \binom{\alpha}{k} (1-q)^{\alpha-k} q^k
        e^{(k-1)\varepsilon(k)}, \qquad \varepsilon(0) = \varepsilon(1) = 0

    Guarantees
    ----------
    The sum is exactly the moment of the mixture against the noise alone. The other direction is
    not larger, because a reflection about half the shift swaps noise and shifted noise (Mironov,
    Talwar, Zhang, theorem 5); both noises here are symmetric. Joint quasi-convexity covers the
    draw of all other records and of the dither. It needs true Poisson draws that stay secret and,
    for Skellam, norm bounds that hold (their failure is charged to delta by the accountant).

    References
    ----------
    Mironov, Talwar, Zhang, "Renyi DP of the Sampled Gaussian Mechanism", arXiv 1908.10530;
    Steinke, "Composition of DP and Privacy Amplification by Subsampling", arXiv 2210.00597.
    """
    return event.count * _sampled(event.times(1))


def epsilon_from_rdp(rdp: NDArray[np.float64], delta: float) -> float:
    r"""Turn a Renyi curve at ``ORDERS``, in nats, into the smallest epsilon >= 0 that it proves.

    .. math::
        \varepsilon = \min_\alpha\; r(\alpha) + \log\left(1 - \frac1\alpha\right)
        - \frac{\log(\delta\alpha)}{\alpha - 1}

    PrivacyError where the curve holds NaN.

    References
    ----------
    Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12.
    """
    orders = np.array(ORDERS, dtype=np.float64)
    bounds = rdp + np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)
    if np.isnan(bounds).any():
        raise PrivacyError("a Renyi curve holds NaN, so nothing is proved; report this history")
    return max(0.0, float(np.min(bounds)))
