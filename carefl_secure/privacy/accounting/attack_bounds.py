"""What a history of events leaves to an attacker who wants to know whether one record was there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.special import ndtr, ndtri

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.accountant import GRID, SKELLAM_GRID
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, merged
from carefl_secure.privacy.accounting.loss_distribution import composed_deltas
from carefl_secure.privacy.accounting.skellam_pld import gaussian_inside
from carefl_secure.privacy.accounting.skellam_rdp import ORDERS, sampled_rdp

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_TPR = 1e-10
_LEAST_Z = -15.0  # a false-positive rate of 4e-51
_Z_STEP = {True: 0.004, False: 0.01}  # by whether a loss distribution is at hand: cheap, or not
_ORDERS = np.array([i for i, order in enumerate(ORDERS) if order <= 64 or order % 16 == 0])
_HALVINGS = 42
_WIDEST = 1000.0  # log odds; far beyond what any finite divergence in use allows

_Vector: TypeAlias = "NDArray[np.float64]"

_PLD = (
    "the privacy loss distribution of all rounds (pessimistic): at every epsilon it "
    "gives a proved delta, and no test can pass the line that such a pair draws"
)
_HIDDEN = (
    "the privacy loss distribution of the Gaussian inside the Skellam noise of all rounds "
    "(pessimistic): at every epsilon it gives a proved delta, no test can pass the line that such "
    "a pair draws, and the distance between the two noises is added to both rates"
)
_MOST_DIVERGENCE = 600.0
_DISTANCE = 1e-12  # far below any rate that is shown
_RDP = (
    "the Renyi curve of all rounds: whoever tells two data sets apart by a test with these rates "
    "has turned the release into a yes or a no, which cannot raise a Renyi divergence; the largest "
    "rate that no order forbids is an upper bound, and above the truth"
)


@dataclass(frozen=True)
class AttackerBounds:
    """Upper bounds for any membership test, whatever the attacker knows or computes.

    No test that finds more than one member in 1e10 passes the Gaussian trade-off curve of ``mu``, except with the
    probability that a rounding broke its norm bound. It is looser than the rates; infinite with next to no noise.
    """

    method: str
    why: str  # why they are upper bounds, in one sentence
    true_positive_rate: Mapping[float, float]  # false-positive rate to the largest share of members found at it
    advantage: float  # largest difference between the two rates
    mu: float
    curve: tuple[tuple[float, float], ...]  # false- and true-positive rates, for drawing


def attacker_bounds(events: Sequence[Event], false_positive_rates: Sequence[float] = (0.01, 0.001)) -> AttackerBounds:
    r"""Bound what a membership attacker can reach after a history of events.

    From a loss distribution, with :math:`\delta(\varepsilon)` at many :math:`\varepsilon`:

    .. math::
        \mathrm{TPR} \le \min_\varepsilon \min\left( e^\varepsilon\,\mathrm{FPR} + \delta,\;
        1 - e^{-\varepsilon}(1 - \delta - \mathrm{FPR}) \right)

    From a Renyi curve :math:`r`, the largest :math:`b` with :math:`D_\alpha(\mathrm{Bern}(b) \| \mathrm{Bern}(a)) \le
    r(\alpha)` and the same the other way round, at every order. The false-positive rates lie in (0, 1).

    Guarantees
    ----------
    Every number is an upper bound under add-or-remove-one adjacency if what the events say is true: bisections return
    their upper end, and grids are closed against the claim. Added on both sides are the chance that a rounding broke
    its norm bound, and the total variation distance between Skellam noise and a rule applied to the Gaussian inside
    it: if the true release is within tau of another on either data set, a test with rates (FPR, TPR) on the first has
    rates of at most FPR + tau and at least TPR - tau on the second.

    References
    ----------
    Kairouz, Oh, Viswanath, "The Composition Theorem for DP", ICML 2015, theorem 2.1; Balle et al.,
    "Hypothesis Testing Interpretations and Renyi DP", AISTATS 2020, theorem 3; Dong, Roth, Su,
    "Gaussian Differential Privacy", JRSS B 2022.
    """
    for rate in false_positive_rates:
        if not 0.0 < rate < 1.0:
            raise ConfigError(f"a false-positive rate is {rate}; choose it above 0 and below 1")
    inner, why, distance = _curve(events)
    pld = why != _RDP
    failure = math.fsum(event.failure for event in events) + distance

    def ceiling(at: _Vector) -> _Vector:
        return np.minimum(1.0, inner(np.minimum(1.0, at + failure)) + failure)

    # The curve is its own mirror image about TPR = 1 - FPR, so its lower half says everything.
    z = np.arange(_LEAST_Z, 2.0 * _Z_STEP[pld], _Z_STEP[pld])
    rates, ceilings = ndtr(z), inner(ndtr(z))
    half = np.concatenate([[True], ceilings[:-1] <= 1.0 - rates[:-1]])
    rates, ceilings, z = rates[half], ceilings[half], z[half]
    seen = ceilings[1:] >= _LEAST_TPR
    mu = np.max(ndtri(ceilings[1:][seen]) - z[:-1][seen], initial=0.0) if events else 0.0
    gap = np.max(ceilings[1:] - rates[:-1]) + 2.0 * failure if events else 0.0
    reached = np.array(false_positive_rates, dtype=np.float64)
    drawn = np.geomspace(1e-4, 1.0, 121)
    return AttackerBounds(
        method="PLD" if pld else "RDP",
        why=why,
        true_positive_rate=dict(zip(false_positive_rates, map(float, ceiling(reached)), strict=True)),
        advantage=float(min(1.0, gap)),
        mu=float(mu),
        curve=tuple(zip(map(float, drawn), map(float, ceiling(drawn)), strict=True)),
    )


def _curve(events: Sequence[Event]) -> tuple[Callable[[_Vector], _Vector], str, float]:
    """Return the lowest curve there is, why it holds, and the distance to be added."""
    if _has_pld(events):
        return _from_pld(events), _PLD, 0.0
    renyi = _from_renyi(events)
    found = gaussian_inside(merged(events), _DISTANCE)
    if found is None or not _has_pld(found[0]):
        return renyi, _RDP, 0.0
    loss = _from_pld(found[0], SKELLAM_GRID)
    at = np.array([0.01])
    if float(loss(at)[0]) > float(renyi(at)[0]):  # so little noise that too much of it is lost
        return renyi, _RDP, 0.0
    return loss, _HIDDEN, found[1]


def _has_pld(events: Sequence[Event]) -> bool:
    """Say whether a history is Gaussian, with losses whose exponentials do not overflow."""
    plain = all(isinstance(event, SampledGaussian) for event in events)
    return plain and sum(float(sampled_rdp(event)[0]) for event in events) <= _MOST_DIVERGENCE


def _from_pld(events: Sequence[Event], grid: float = GRID) -> Callable[[_Vector], _Vector]:
    """Return the lowest of the lines that the pairs (epsilon, delta) of a history draw."""
    if not events:
        return lambda rates: rates
    step, proved = composed_deltas(
        [
            SampledGaussian(1.0, e.noise_multiplier / math.sqrt(e.count), 1) if e.sample_rate == 1.0 else e
            for e in merged(events)
            if isinstance(e, SampledGaussian)
        ],
        grid,
    )
    reached = proved > _LEAST_TPR / 100.0
    last = min(int(np.argmin(reached)) if not reached[-1] else len(proved) - 1, int(200.0 / step))
    places = np.unique(np.linspace(0, last, 4001).astype(int))
    epsilons, deltas = step * places, proved[places]

    def ceiling(rates: _Vector) -> _Vector:
        best = np.ones_like(rates)
        for epsilon, delta in zip(epsilons, deltas, strict=True):
            upper = math.exp(epsilon) * rates + delta
            other = 1.0 - math.exp(-epsilon) * np.maximum(0.0, 1.0 - delta - rates)
            np.minimum(best, np.minimum(upper, other), out=best)
        return best

    return ceiling


def _from_renyi(events: Sequence[Event]) -> Callable[[_Vector], _Vector]:
    """Return the largest true-positive rate that no order of the Renyi curve forbids."""
    orders = np.array(ORDERS, dtype=np.float64)[_ORDERS][:, None]
    curve = sum((sampled_rdp(event) for event in merged(events)), np.zeros(len(ORDERS)))
    allowed = (orders - 1.0) * curve[_ORDERS][:, None]

    def ceiling(rates: _Vector) -> _Vector:
        a = np.clip(rates, 1e-300, 1.0 - 1e-16)[None, :]
        log_a, log_rest = np.log(a), np.log1p(-a)
        start = np.broadcast_to(log_a - log_rest, (len(orders), a.shape[1]))
        low, high = start.copy(), start + _WIDEST
        for _ in range(_HALVINGS):
            odds = 0.5 * (low + high)
            log_b, log_miss = -np.logaddexp(0.0, -odds), -np.logaddexp(0.0, odds)
            there = np.logaddexp(
                orders * log_b + (1.0 - orders) * log_a, orders * log_miss + (1.0 - orders) * log_rest
            )
            back = np.logaddexp(orders * log_a + (1.0 - orders) * log_b, orders * log_rest + (1.0 - orders) * log_miss)
            fits = np.maximum(there, back) <= allowed
            low, high = np.where(fits, odds, low), np.where(fits, high, odds)
        largest = np.exp(-np.logaddexp(0.0, -np.min(high, axis=0)))
        return np.asarray(np.maximum(rates, largest), dtype=np.float64)

    return ceiling
