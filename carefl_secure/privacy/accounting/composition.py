"""What several accounts come to: of clients, shared persons, adaptively chosen runs, and fewer honest clients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.accounting.accountant import DELTA_RANGE, epsilon, mixture_epsilon
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam, check_whole
from carefl_secure.privacy.accounting.skellam_rdp import ORDERS, sampled_rdp
from carefl_secure.privacy.sampling import any_of

_APART = (
    "no unit is at two clients: then each unit is in one ledger only, and the highest epsilon of "
    "any ledger is the price (maximum)"
)
_RUNS = "several runs on the same records: one account of all their sums, kept in the clients' ledgers"
_HONEST = (
    "noise multiplier: of the noise of the honest survivors that are certain (fewest survivors "
    "less colluders); more survivors only help, fewer open no sum, more colluders void it"
)
_SHARED = (
    "a unit at n clients: under the secure sum all its contributions meet one noise, so k of them, with the binomial "
    "probability of k draws of n, cost what one unit of k times the norm costs, which may be more than the sum of "
    "the clients' epsilons; with noise of each client (trust none), the sum of epsilon and delta"
)


@dataclass(frozen=True)
class Combined:
    """An epsilon with what it rests on."""

    epsilon: float  # in nats; infinite where some account has none
    delta: float
    conditions: tuple[str, ...]  # what must hold for it, one sentence each; show them with it


def over_disjoint_clients(epsilons: Sequence[float], delta: float) -> Combined:
    r"""Combine the accounts of clients that hold different units (parallel composition).

    .. math:: \varepsilon = \max_i \varepsilon_i

    over what each client's ledger comes to, all at the same ``delta``.

    Guarantees
    ----------
    Adding or removing one unit changes the input of one client only, whose ledger covers all that was released with
    it. This needs add-or-remove-one adjacency, and plans that do not depend on what any client holds.

    References
    ----------
    McSherry, "Privacy Integrated Queries", SIGMOD 2009, theorem 4.
    """
    if not epsilons:
        raise ConfigError("there is no account to combine; give one for each client")
    for value in epsilons:
        if not value >= 0.0:
            raise ConfigError(f"an epsilon is {value}; an accountant never gives less than 0")
    return Combined(max(epsilons), delta, (_APART,))


def over_shared_persons(events: Sequence[Event], clients: int, delta: float) -> Combined:
    r"""Price a run for a unit (a person, or a record that was copied) that is at several clients.

    Under the secure sum the contributions of all n clients enter one sum with one noise. Their draws are independent,
    so k contributions meet in a sum with the binomial probability of k draws of n: see `mixture_epsilon`. Where that
    is not proved (too little noise, unknown dimension), and where it is lower, one event with

    .. math:: q' = 1 - (1 - q)^n, \qquad l_i' = n\, l_i, \qquad \beta' = n \beta

    is the price, at ``delta`` itself. The sum of the clients' epsilons is *not* a bound there. It
    is one where every client adds all noise itself: :math:`\varepsilon' = n \varepsilon`,
    :math:`\delta' = n \delta`. ``events`` are those for a unit at one client, of one kind of noise.

    Guarantees
    ----------
    Given which clients drew the unit, the sum is shifted by a fixed vector of norm k l at most.
    Both figures are upper bounds; ``docs/accounting.md`` has the proofs.
    """
    check_whole("clients", clients, 1)
    words = f"a unit may be at {clients} clients"
    alone = [event for event in events if isinstance(event, SampledSkellam)]
    if not alone:
        return Combined(clients * epsilon(events, delta), clients * delta, (words, _SHARED))
    if len(alone) < len(events):
        raise ConfigError("noise of the sum and of single clients is not priced together here")
    together = [
        dataclasses.replace(
            event,
            sample_rate=any_of(event.sample_rate, clients),
            l1=clients * event.l1,
            l2=clients * event.l2,
            beta=min(clients * event.beta, 0.999),
        )
        for event in alone
    ]
    found = epsilon(together, delta)
    if clients > 1:
        mixture = mixture_epsilon(alone, clients, delta, found)
        found = found if mixture is None else mixture
    return Combined(found, delta, (words, _SHARED))


def with_survivors(event: Event, planned_honest: int, honest: int) -> Event:
    """Return what a round releases if more or fewer honest clients made noise than planned.

    Skellam noise has a variance in proportion to them; Gaussian noise is each client's own and stays as it is.

    Parameters
    ----------
    planned_honest : int
        Honest clients whose noise the plan counts: the fewest survivors less the colluders.
    honest : int
        Those whose noise is really left: survivors less colluders. Each further colluder takes one off, and so does
        each survivor fewer. At least 1: otherwise nothing hides anybody.
    """
    if planned_honest < 1 or honest < 1:
        raise ConfigError(f"{honest} honest clients of {planned_honest} planned leave no noise; no epsilon holds")
    if isinstance(event, SampledGaussian):
        return event
    if not isinstance(event, SampledSkellam):
        raise ConfigError(f"{event!r} is no event that can be rescaled")
    return dataclasses.replace(event, variance=event.variance * honest / planned_honest)


def conditions(unit: str, bands: int = 1) -> tuple[str, ...]:
    """Return the conditions (sentences) under which one client's epsilon covers everybody."""
    shared = _SHARED if bands == 1 else "a unit at n clients: no figure is proved for banded noise"
    return (
        f"several clients: {_APART}",
        *((f"several clients, shared persons: {shared}",) if unit != "client" else ()),
        _RUNS,
        _HONEST,
    )


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
    first : Sequence[Event]
        The first run, with all sums of its plan, executed or not.
    later : Sequence[Event]
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
