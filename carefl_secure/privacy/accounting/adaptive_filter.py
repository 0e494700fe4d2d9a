"""A limit over several runs that holds although each run is chosen by looking at the ones before.

Composition by loss distributions needs parameters fixed beforehand, which holds within a run only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carefl_secure.errors import PrivacyError
from carefl_secure.privacy.accounting.accountant import DELTA_RANGE, epsilon
from carefl_secure.privacy.accounting.events import Event
from carefl_secure.privacy.accounting.skellam_rdp import ORDERS, sampled_rdp

_SHARES = (0.001, 0.01, 0.1, 0.5, 0.9)  # of delta that the first run may need at the limit
_FAILURES = 0.1  # of what is left, for roundings of later runs


def filtered_epsilon(first: Sequence[Event], later: Sequence[Event], limit: float, delta: float) -> float:
    r"""Price runs that were chosen adaptively, for comparison with a limit fixed beforehand.

    With :math:`f\delta` the delta that the first run's whole plan needs at the limit E, and the rest
    :math:`\delta_b = 0.9(1-f)\delta` shared by two orders :math:`\alpha` that E and :math:`\delta_b` fix:

    .. math::
        \min_\alpha \sum_i r_i(\alpha) + \log\left(1 - \tfrac1\alpha\right)
        - \frac{\log(\delta_b \alpha / 2)}{\alpha - 1} \le E

    ``epsilon(first, delta)`` without later runs; infinity where the first run leaves no delta.

    Parameters
    ----------
    first : sequence of Event
        The first run, with all sums of its plan, executed or not.
    later : sequence of Event
        All sums of later runs, including those about to be released.
    limit, delta : float
        E, and delta in [1e-10, 1e-2]; the same at every call for one ledger.

    Guarantees
    ----------
    If a sum is released only where this is at most ``limit``, everything released is (limit,
    delta)-DP under add-or-remove-one adjacency, although each later event depends on all earlier
    releases. The first plan, ``limit`` and ``delta`` must not. Proof: ``docs/accounting.md``.

    References
    ----------
    Feldman, Zrnic, "Individual Privacy Accounting via a Renyi Filter", NeurIPS 2021, theorem 4.3;
    Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12.
    """
    if not later or math.isinf(limit):
        return epsilon([*first, *later], delta)
    share = next((s for s in _SHARES if _keeps(first, limit, s * delta)), None)
    if share is None:
        return math.inf
    left = (1.0 - share) * delta
    if math.fsum(event.failure for event in later) > _FAILURES * left:
        return math.inf
    left *= 1.0 - _FAILURES
    places = _places(limit, left)
    left /= len(places)
    curve = np.sum([sampled_rdp(event) for event in (*first, *later)], axis=0)
    return min(
        float(curve[place]) + math.log1p(-1.0 / ORDERS[place]) - math.log(left * ORDERS[place]) / (ORDERS[place] - 1.0)
        for place in places
    )


def _keeps(events: Sequence[Event], limit: float, delta: float) -> bool:
    if not events:
        return True
    try:
        return epsilon(events, max(delta, DELTA_RANGE[0])) <= limit and delta >= DELTA_RANGE[0]
    except PrivacyError:  # roundings may fail more often than this delta
        return False


def _places(limit: float, delta: float) -> tuple[int, ...]:
    """Index the order with most room for a linear curve, and a lower one for curves that rise."""

    def room(order: int) -> float:
        gain = math.log(delta * order) / (order - 1.0) - math.log1p(-1.0 / order)
        return (limit + gain) / order

    best = max(range(len(ORDERS)), key=lambda place: room(ORDERS[place]))
    below = next(p for p in range(len(ORDERS)) if ORDERS[p] >= 0.7 * ORDERS[best])
    return tuple({best, below})
