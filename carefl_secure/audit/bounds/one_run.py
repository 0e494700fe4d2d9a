"""Lower bounds on epsilon from one run with many canaries, each included by a fair coin.

The attacker guesses the canaries with the highest scores to be in, those with the lowest to be out,
and says nothing of the rest. How many it guesses is fixed before the scores are seen.

In all functions ``scores`` are float64 [canaries], higher means "was in"; ``member`` are the coins,
bool [canaries]; ``share`` is the share of the canaries guessed on either side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import binom

from carefl_secure.errors import ConfigError

Scores = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]
Curve = Callable[[float], float]
"""Least mass of right guesses that a claim leaves for a mass of wrong ones, ``f(1 - x)``."""

GUESSES = 0.125
"""Default share of the canaries guessed on either side."""
_HIGHEST = 64.0
_HALVINGS = 40


def _right(scores: Scores, member: Members, share: float) -> tuple[int, int, int]:
    """Return the number of canaries, of guesses, and of right ones."""
    count = len(scores)
    if count != len(member) or count < 2:
        raise ConfigError("a one-run bound needs one score and one coin for each of two or more")
    if not 0 < share <= 0.5:
        raise ConfigError(f"the share guessed on a side is {share}; choose it in (0, 0.5]")
    side = max(1, int(share * count))
    order = np.argsort(scores, kind="stable")
    right = int(member[order[-side:]].sum() + (~member[order[:side]]).sum())
    return count, 2 * side, right


def steinke_epsilon(
    scores: Scores, member: Members, delta: float, *, confidence: float = 0.95, share: float = GUESSES
) -> float:
    r"""Bound epsilon of any mechanism from below by the number of right guesses; 0 at chance level.

    With W binomial of r guesses and probability :math:`e^\varepsilon/(1+e^\varepsilon)`, v of r
    guesses about m canaries are right with a probability of at most

    .. math:: P[W \ge v] + 2 m \delta \max_i \frac{P[v - i \le W < v]}{i}.

    Guarantees
    ----------
    The bound exceeds the true epsilon at ``delta`` with probability ``1 - confidence`` at most, if
    the coins were fair and independent and the scores know nothing of them but the release.

    References
    ----------
    Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2.
    """
    return _steinke(*_right(scores, member, share), delta, 1.0 - confidence)


# All that a score can say is how many guesses were right, so equal counts have equal answers.
@functools.lru_cache(maxsize=4096)
def _steinke(count: int, guesses: int, right: int, delta: float, error: float) -> float:
    def excess(epsilon: float) -> float:
        return _chance(count, guesses, right, epsilon, delta) - error

    if excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0 and high < _HIGHEST:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-6)) if excess(high) > 0 else high


def _chance(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    law = binom(guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    chance = float(law.sf(right - 1))
    if delta > 0 and right > 0:
        window = np.cumsum(law.pmf(np.arange(right - 1, -1, -1)))
        chance += 2 * count * delta * float(np.max(window / np.arange(1, right + 1)))
    return min(1.0, chance)


def contradicts(
    scores: Scores, member: Members, curve: Curve, *, confidence: float = 0.95, shares: Sequence[float] = (GUESSES,)
) -> bool:
    """Return whether one run contradicts a claimed trade-off curve.

    Parameters
    ----------
    curve : Curve
        The claim. Where it is only known from above it must err towards less protection.
    confidence : float, optional
        For all ``shares`` together; the error is divided among them.
    shares : Sequence[float], optional
        Shares guessed on a side, each tried.

    Guarantees
    ----------
    A true claim is contradicted with probability ``1 - confidence`` at most.

    References
    ----------
    Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", ICML 2025, the
    recursion of their theorem 3.2.
    """
    error = (1.0 - confidence) / len(shares)
    return any(_impossible(*_right(scores, member, share), error, curve) for share in shares)


def _impossible(count: int, guesses: int, right: int, error: float, curve: Curve) -> bool:
    """Walk down from ``right``: the masses that a passing audit needs must fit the guesses."""
    good, bad = error * right / count, error * (guesses - right) / count
    for number in reversed(range(right)):
        gain = curve(good) - bad
        if gain <= 0:  # a fixed point: fewer right guesses change nothing any more
            break
        bad += gain
        good = min(1.0, good + gain * number / (guesses - number))
    return good + bad > guesses / count


def approximate_curve(epsilon: float, delta: float) -> Curve:
    """Return the trade-off curve of all (epsilon, delta)-DP mechanisms."""
    up, down = math.exp(epsilon), math.exp(-epsilon)

    def curve(mass: float) -> float:
        return max(0.0, 1.0 - delta - up * (1.0 - mass), down * (mass - delta))

    return curve


def _largest(rejected: Callable[[float], bool]) -> float:
    """Return the largest parameter that is rejected, from below; 0 if none is."""
    low, high = 1e-6, 1.0
    if not rejected(low):
        return 0.0
    while rejected(high) and high < _HIGHEST:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def fdp_epsilon(
    scores: Scores, member: Members, delta: float, *, confidence: float = 0.95, share: float = GUESSES
) -> float:
    """Bound epsilon of any mechanism from below: the largest (epsilon, delta) contradicted.

    Guarantees
    ----------
    As in :func:`contradicts`: no assumption on the mechanism.
    """
    return _fdp(*_right(scores, member, share), delta, 1.0 - confidence)


@functools.lru_cache(maxsize=4096)
def _fdp(count: int, guesses: int, right: int, delta: float, error: float) -> float:
    return _largest(lambda e: _impossible(count, guesses, right, error, approximate_curve(e, delta)))


def fdp_gaussian(
    scores: Scores, member: Members, delta: float, *, confidence: float = 0.95, share: float = GUESSES
) -> float:
    """Bound epsilon of a mu-GDP mechanism from below: the largest mu contradicted, as epsilon.

    Guarantees
    ----------
    As in :func:`contradicts`, if the mechanism's trade-off curve is that of a Gaussian.
    """
    return gdp_epsilon(_mu(*_right(scores, member, share), 1.0 - confidence), delta)


@functools.lru_cache(maxsize=4096)
def _mu(count: int, guesses: int, right: int, error: float) -> float:
    return _largest(lambda m: _impossible(count, guesses, right, error, lambda mass: gdp_inverse(m, mass)))


def gdp_delta(mu: float, epsilon: float) -> float:
    r"""Return delta of a mu-GDP mechanism at ``epsilon``.

    .. math:: \delta = \Phi(-\varepsilon/\mu + \mu/2) - e^{\varepsilon}\,\Phi(-\varepsilon/\mu - \mu/2)

    References
    ----------
    Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022, corollary 2.13.
    """
    if mu <= 0:
        return 0.0
    upper = float(ndtr(-epsilon / mu + mu / 2))
    lower = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return max(0.0, upper - lower)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon of a mu-GDP mechanism at ``delta``; 0 where delta covers it all."""
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gdp_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda e: gdp_delta(mu, e) - delta, 0.0, high, xtol=1e-9))


def gdp_inverse(mu: float, mass: npt.NDArray[np.float64] | float) -> float:
    """Return the least mass of right guesses that mu-GDP leaves for a mass of wrong ones."""
    return float(ndtr(ndtri(mass) - mu))
