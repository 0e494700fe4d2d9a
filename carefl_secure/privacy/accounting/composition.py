"""What several accounts come to: of clients, shared persons, runs, and fewer honest clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.accountant import epsilon, mixture_epsilon
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam
from carefl_secure.privacy.checks import check_whole
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
    """An epsilon in nats (infinite where some account has none) at a delta.

    ``conditions`` are what must hold for it, one sentence each; show them with it.
    """

    epsilon: float
    delta: float
    conditions: tuple[str, ...]


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
        Those whose noise is really left: survivors less colluders. Each further colluder takes one
        off, and so does each survivor fewer. At least 1: otherwise nothing hides anybody.
    """
    if planned_honest < 1 or honest < 1:
        raise ConfigError(f"{honest} honest clients of {planned_honest} planned leave no noise; no epsilon holds")
    if isinstance(event, SampledGaussian):
        return event
    if not isinstance(event, SampledSkellam):
        raise ConfigError(f"{event!r} is no event that can be rescaled")
    return dataclasses.replace(event, variance=event.variance * honest / planned_honest)


def conditions(unit: str) -> tuple[str, ...]:
    """Return the conditions (sentences) under which one client's epsilon covers everybody."""
    return (
        f"several clients: {_APART}",
        *((f"several clients, shared persons: {_SHARED}",) if unit != "client" else ()),
        _RUNS,
        _HONEST,
    )
