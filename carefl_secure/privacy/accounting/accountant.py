"""What a history of events costs, by PLD where one is proved and by RDP elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam, merged
from carefl_secure.privacy.accounting.loss_distribution import composed_epsilon
from carefl_secure.privacy.accounting.skellam_pld import hidden_history
from carefl_secure.privacy.accounting.skellam_rdp import ORDERS, epsilon_from_rdp, sampled_rdp

DELTA_RANGE = (1e-10, 1e-2)
GRID = 1e-4
SKELLAM_GRID = 5e-4  # fine enough there, and priced anew in every round
COARSE_GRID = 1e-3
ROUGH_GRID = 1e-2
MIXTURE_GRID = 5e-3  # each step is a root search; within 2 % of the finest where it was compared
_USUAL_DELTA = 1e-5
_MOST_EPSILON = 600.0  # its exponential must be finite


def check_delta(delta: float) -> None:
    """Refuse a delta outside [1e-10, 1e-2], the range in which the accountants are accurate."""
    low, high = DELTA_RANGE
    if not low <= delta <= high:
        raise ConfigError(f"delta is {delta}; choose it from {low:g} to {high:g}")


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Bound the epsilon of a history of events, each record added or removed, in nats.

    The least epsilon that the accountants of ``accountant_name`` prove; 0 for no events.

    PrivacyError where rounding alone may fail with a probability of ``delta`` or more.

    Parameters
    ----------
    events : Sequence[Event]
        Everything ever released from the data, of any kinds and in any order. Parameters must not have been chosen by
        looking at earlier releases; stopping early is always allowed.
    delta : float
        Probability with which the bound may fail, in [1e-10, 1e-2]. The chance that a rounding broke its norm bound
        (``count * beta`` of each event) is taken out of it first.

    Guarantees
    ----------
    An upper bound: the history is (epsilon, delta)-DP under add-or-remove-one adjacency, if what
    the events say is true. Both accountants round pessimistically. Histories with Skellam noise
    are priced by both and the lesser counts; ``docs/accounting.md`` has the proof.
    """
    return _priced(events, delta)[0]


def accountant_name(events: Sequence[Event], delta: float | None = None) -> str:
    """Name the accountant behind ``epsilon`` at ``delta`` (1e-5 by default): ``"PLD ..."`` or ``"RDP ..."``."""
    if _priced(events, _USUAL_DELTA if delta is None else delta)[1]:
        if _all_gaussian(events):
            return f"PLD (Connect the Dots, pessimistic, grid {GRID:g}, add or remove one)"
        return (
            "PLD (Connect the Dots, pessimistic, of the Gaussian inside the Skellam noise, "
            f"grid {SKELLAM_GRID:g}, add or remove one)"
        )
    return f"RDP (whole orders {ORDERS[0]} to {ORDERS[-1]}, add or remove one)"


def _priced(events: Sequence[Event], delta: float, grid: float | None = None) -> tuple[float, bool]:
    """Return epsilon, and whether it comes from privacy loss distributions."""
    if _all_gaussian(events):
        check_delta(delta)
        found = _gaussian_pld(tuple(e for e in merged(events) if isinstance(e, SampledGaussian)), delta, grid or GRID)
        if math.isfinite(found):
            return found, True
    ceiling = rdp_epsilon(events, delta)
    by_pld = _pld_below(events, delta, ceiling, grid or SKELLAM_GRID)
    return (ceiling, False) if by_pld is None or by_pld >= ceiling else (by_pld, True)


def coarse_epsilon(events: Sequence[Event], delta: float, grid: float = COARSE_GRID) -> float:
    """Bound epsilon as ``epsilon`` does, on a coarser grid: still valid, faster, and larger.

    ``grid`` 1e-3 is some 0.005 above the truth for usual runs; 1e-2 takes a tenth of the time and
    may lie 5 % above it.
    """
    return _priced(events, delta, grid)[0]


def epsilon_by_delta(events: Sequence[Event], delta: float) -> tuple[tuple[float, float], ...]:
    """Pair 10, 0.1 and 0.01 times delta, where the account reaches it, with `coarse_epsilon`; all hold at once."""
    least = max(DELTA_RANGE[0], 2.0 * math.fsum(event.failure for event in events))
    deltas = [float(f"{factor * delta:.12g}") for factor in (10.0, 0.1, 0.01)]
    return tuple((value, coarse_epsilon(events, value)) for value in deltas if least <= value <= DELTA_RANGE[1])


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Bound epsilon, as ``epsilon`` does, by Renyi divergences: some 7 to 27 % above the truth for usual runs."""
    left = _delta_left(events, delta)
    if not events:
        return 0.0
    total = np.sum([sampled_rdp(event) for event in merged(events)], axis=0)
    return epsilon_from_rdp(total, left)


def mixture_epsilon(events: Sequence[SampledSkellam], clients: int, delta: float, ceiling: float) -> float | None:
    r"""Bound epsilon for a unit that each of n clients holds and draws on its own.

    With noise multiplier z, the pair of one sum is :math:`N(0, z^2)` and

    .. math:: \sum_{k=0}^{n} \binom{n}{k} q^k (1-q)^{n-k} N(k, z^2)

    for the Gaussian noise inside the Skellam noise of the sum; ``events`` are those of a unit at
    one client. None where nothing below ``ceiling``, an epsilon proved otherwise, is proved so.

    References
    ----------
    Choquette-Choo et al., "Privacy Amplification for Matrix Mechanisms", ICLR 2024 (arXiv
    2310.15526), corollary 4.7; ``docs/accounting.md`` has a proof.
    """
    # the lower ceiling leaves more of delta for the distance between the two noises
    for most in (_likely(events, delta, clients), _MOST_EPSILON):
        found = _pld_below(events, delta, min(most, ceiling), MIXTURE_GRID, clients)
        if found is not None:
            return found
    return None


def _likely(events: Sequence[Event], delta: float, clients: int = 1) -> float:
    """Return more than epsilon would be with Gaussian noise of the same variance, at most 600."""
    like = [
        SampledGaussian(e.sample_rate, math.sqrt(e.variance) / e.l2, e.count) if isinstance(e, SampledSkellam) else e
        for e in merged(events)
    ]
    guess = composed_epsilon(like, delta, 10.0 * MIXTURE_GRID, clients)
    return min(1.25 * guess + 1.0, _MOST_EPSILON)


def _pld_below(events: Sequence[Event], delta: float, ceiling: float, grid: float, clients: int = 1) -> float | None:
    """Price a history with Skellam noise; what comes out above the ceiling proves nothing."""
    left = _delta_left(events, delta, clients)
    if ceiling > _MOST_EPSILON:
        ceiling = _likely(events, delta, clients)
    hidden = hidden_history(merged(events), left, ceiling)
    if hidden is None:
        return None
    found = _gaussian_pld(tuple(hidden[0]), left - hidden[1], grid, clients)
    return found if found <= ceiling else None


@functools.lru_cache(maxsize=1024)
def _gaussian_pld(events: tuple[SampledGaussian, ...], delta: float, grid: float, clients: int = 1) -> float:
    return composed_epsilon(events, delta, grid, clients) if events else 0.0


def _delta_left(events: Sequence[Event], delta: float, clients: int = 1) -> float:
    """Take the probability of broken norm bounds out of delta."""
    check_delta(delta)
    failure = clients * math.fsum(event.failure for event in events)
    if failure >= delta:
        raise PrivacyError(
            f"rounding may break its bound with probability {failure:.3g}, which is not below "
            f"delta {delta:.3g}; choose a smaller beta, fewer rounds or a larger delta"
        )
    return delta - failure


def _all_gaussian(events: Sequence[Event]) -> bool:
    return all(isinstance(event, SampledGaussian) for event in events)
