"""Many canaries in one run: whether the release contradicts the claimed guarantee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.bounds.clopper_pearson import BOUNDS, attainable
from carefl_secure.audit.bounds.one_run import Curve, contradicts
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Attack, Figure, Finding, ReleaseView
from carefl_secure.privacy import Event, epsilon
from carefl_secure.privacy.accounting.attack_bounds import attacker_bounds

SHARES = (0.02, 0.05, 0.125, 0.25)
"""Shares of the canaries guessed on a side, declared before any score is seen."""
_DECIDING = ("steinke", "f-dp")


class GradientCanaries(Attack[ReleaseView, npt.NDArray[np.float64]]):
    r"""Scores possible canaries by the likelihood ratio of the claimed mechanism.

    A canary is a record whose clipped gradient is C times one unit vector (a Dirac canary). Its coordinate of the t-th
    sum, in units of C, is :math:`x_t = b_t + \sigma_t z` with :math:`b_t \sim \mathrm{Bern}(q)` if it is in, and

    .. math:: s = \sum_t \log\left(1 - q + q\, e^{(2 x_t - 1) / 2 \sigma_t^2}\right).
    """

    name = "canaries"
    adversary = "anyone who sees the opened sums"
    view = ReleaseView

    def attack(self, view: ReleaseView) -> npt.NDArray[np.float64]:
        """Return one score per canary; higher means "was in"."""
        x = view.sums[:, view.coordinates]
        # Without noise the ratio is infinite; a thousandth of a canary stands for none.
        variance = np.maximum(view.noise, 1e-3)[:, None] ** 2
        exponent = (2.0 * x - 1.0) / (2.0 * variance)
        rate = view.sample_rate
        if rate >= 1.0:
            return np.asarray(exponent.sum(axis=0))
        terms = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent)
        return np.asarray(terms.sum(axis=0), dtype=np.float64)


def claimed_curve(events: Sequence[Event]) -> Curve:
    """Return the least mass of right guesses that a history of events leaves for wrong ones.

    The accountant bounds the true-positive rate from above on a grid of false-positive rates;
    between two of them the next higher bound is taken, so the claim errs towards less protection.
    """
    tail = np.geomspace(1e-7, 0.5, 240)
    rates = np.concatenate([tail, 1.0 - tail[-2::-1]])
    bounds = attacker_bounds(events, rates.tolist())
    ceilings = np.array([bounds.true_positive_rate[rate] for rate in rates.tolist()])
    ceilings = np.maximum.accumulate(ceilings)

    def curve(mass: float) -> float:
        place = int(np.searchsorted(rates, 1.0 - mass))
        return 0.0 if place >= len(rates) else float(1.0 - ceilings[place])

    return curve


def judge_canaries(rehearsal: Rehearsal, scores: npt.NDArray[np.float64], curve: Curve | None = None) -> Finding:
    """Compare the scores, float64 [canaries], with the coins and the claim of the plan's events."""
    plan, rounds = rehearsal.plan, len(rehearsal.sums)
    figures: dict[str, Figure] = {"canaries": len(rehearsal.member), "rounds": rounds, "clients": plan.privacy.clients}
    for name, bound in BOUNDS.items():
        if name not in (*_DECIDING, "f-dp-gaussian", "clopper-pearson-gaussian"):
            # the last two assume a sum without sampling
            kind = "estimate" if bound.estimate else "lower bound"
            figures[f"epsilon {kind}: {name}"] = bound.compute(scores, rehearsal.member, plan.privacy.delta)
            most = attainable(name, len(rehearsal.member), plan.privacy.delta)
            if most is not None:
                figures[f"attainable with {len(rehearsal.member)} coins: {name}"] = most
    return judge_coins(
        "one run with coin-flipped gradient canaries",
        scores,
        rehearsal.member,
        claim=None if plan.event is None else [plan.event] * -(-rounds // plan.privacy.bands),
        delta=plan.privacy.delta,
        attack=GradientCanaries,
        figures=figures,
        curve=curve,
    )


def judge_coins(
    check: str,
    scores: npt.NDArray[np.float64],
    member: npt.NDArray[np.bool_],
    *,
    claim: Sequence[Event] | None,
    delta: float,
    attack: type[Attack[ReleaseView, npt.NDArray[np.float64]]],
    figures: Mapping[str, Figure],
    curve: Curve | None = None,
) -> Finding:
    """Compare scores with the coins, and with what a history of events claims.

    The finding is ``falsified`` if the claimed curve (``curve`` in its place, for tests) is
    contradicted at 95 %, over four numbers of guesses declared here. ``passed`` means not
    contradicted, which is no proof; ``skipped``, that nothing is claimed.
    """
    count, found = len(member), dict(figures)
    lows, most = [], []
    for name in _DECIDING:
        lows.append(BOUNDS[name].compute(scores, member, delta))
        most.append(attainable(name, count, delta) or 0.0)
        found[f"epsilon lower bound: {name}"] = lows[-1]
        found[f"attainable with {count} coins: {name}"] = most[-1]
    if claim is None:
        words = f"Nothing is claimed; {count} coins give a lower bound of {max(lows):.2f}."
        return Finding(attack.name, check, "skipped", words, found)
    claimed = epsilon(claim, delta)
    found["epsilon claimed"] = claimed
    bad = contradicts(scores, member, curve or claimed_curve(claim), shares=SHARES)
    words = (
        f"{count} canaries, put in by coin flips, {'CONTRADICT' if bad else 'do not contradict'} the claim of epsilon "
        f"{claimed:.4g}: lower bound {max(lows):.2f} at 95 %, where a perfect attack could have shown {max(most):.2f}."
    )
    return Finding(attack.name, check, "falsified" if bad else "passed", words, found)
