"""Lower bounds on epsilon from independent trials, and all lower bounds together with what each assumes.

Exact binomial limits on the error rates need independent trials: many runs, or many canaries that cannot influence
each other. The threshold is chosen on one half of the scores and judged on the other, so that choosing it does not
weaken the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import beta, nct
from scipy.stats import t as student

from carefl_secure.audit.bounds.one_run import Members, Scores, fdp_epsilon, fdp_gaussian, gdp_epsilon, steinke_epsilon


def clopper_pearson(hits: int, trials: int, error: float) -> float:
    """Return the upper limit of a rate: the truth exceeds it with probability ``error`` at most."""
    return 1.0 if hits >= trials else float(beta.ppf(1.0 - error, hits + 1, trials - hits))


def lower_limit(hits: int, trials: int, error: float) -> float:
    """Return the lower limit of a rate: the truth is below with probability ``error`` at most."""
    return 0.0 if hits <= 0 else float(beta.ppf(error, hits, trials - hits + 1))


def exact_interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of Clopper and Pearson for a rate."""
    error = (1.0 - confidence) / 2
    return lower_limit(hits, trials, error), clopper_pearson(hits, trials, error)


def rate_figures(name: str, hits: int, trials: int) -> dict[str, float]:
    """Return a rate and its 95 % interval as figures of a finding."""
    low, high = exact_interval(hits, trials)
    return {name: hits / trials, f"{name}, 95 % low": low, f"{name}, 95 % high": high}


def clopper_pearson_epsilon(
    scores: Scores, member: Members, delta: float, *, confidence: float = 0.95, seed: int = 0
) -> float:
    r"""Bound epsilon from below by the rates of one threshold, for any mechanism; 0 if no evidence.

    .. math:: \varepsilon \ge \log\frac{\underline{\mathrm{TPR}} - \delta}{\overline{\mathrm{FPR}}}

    and the same with the roles of members and others exchanged. The error is divided among the two
    limits of the two directions.

    Parameters
    ----------
    scores : float64, shape [canaries]
        Higher means "was in".
    member : bool, shape [canaries]
        Which were in.
    confidence : float, optional
        Probability that the bound holds.
    seed : int, optional
        How the scores are halved; chosen before they are seen.

    Guarantees
    ----------
    The bound exceeds the true epsilon at ``delta`` with probability ``1 - confidence`` at most, if
    the trials are independent.
    """
    (choose_in, choose_out), (inside, outside) = _halves(scores, member, seed)
    error = 1.0 - confidence
    candidates = np.unique(np.concatenate([choose_in, choose_out]))
    if len(candidates) > 60:
        candidates = np.quantile(candidates, np.linspace(0.0, 1.0, 60))
    best, threshold = -1.0, 0.0
    for value in candidates:
        found = _at(choose_in, choose_out, float(value), delta, error)
        if found > best:
            best, threshold = found, float(value)
    return _at(inside, outside, threshold, delta, error)


def clopper_pearson_gaussian(
    scores: Scores, member: Members, delta: float, *, confidence: float = 0.95, seed: int = 0
) -> float:
    r"""Bound epsilon from below by the rates of one threshold, for a mechanism that is mu-GDP.

    .. math:: \mu \ge \Phi^{-1}(1 - \overline{\mathrm{FPR}}) - \Phi^{-1}(\overline{\mathrm{FNR}})

    Never the absolute value of that difference: two wide limits would read as strong evidence.
    Parameters are those of :func:`clopper_pearson_epsilon`.

    Guarantees
    ----------
    As there, if the mechanism's trade-off curve is that of a Gaussian: a sum without sampling. A
    sampled mechanism is not.

    References
    ----------
    Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023.
    """
    (choose_in, choose_out), (inside, outside) = _halves(scores, member, seed)
    threshold = float(np.median(np.concatenate([choose_in, choose_out])))
    error = (1.0 - confidence) / 2
    missed = clopper_pearson(int(np.sum(inside < threshold)), len(inside), error)
    alarms = clopper_pearson(int(np.sum(outside >= threshold)), len(outside), error)
    mu = float(-ndtri(alarms) - ndtri(missed))
    return gdp_epsilon(mu, delta) if mu > 0 else 0.0


def _halves(scores: Scores, member: Members, seed: int) -> tuple[tuple[Scores, Scores], tuple[Scores, Scores]]:
    rng = np.random.default_rng(seed)
    inside, outside = rng.permutation(scores[member]), rng.permutation(scores[~member])
    a, b = len(inside) // 2, len(outside) // 2
    return (inside[:a], outside[:b]), (inside[a:], outside[b:])


def _at(inside: Scores, outside: Scores, threshold: float, delta: float, error: float) -> float:
    hits, alarms = int(np.sum(inside >= threshold)), int(np.sum(outside >= threshold))
    best = 0.0
    for good, of, bad, out_of in (
        (hits, len(inside), alarms, len(outside)),
        (len(outside) - alarms, len(outside), len(inside) - hits, len(inside)),
    ):
        low = lower_limit(good, of, error / 4)
        high = clopper_pearson(bad, out_of, error / 4)
        if low > delta:
            best = max(best, math.log((low - delta) / high))
    return best


def gaussian_estimate(scores: Scores, member: Members, delta: float, *, confidence: float = 0.95) -> float:
    r"""Estimate epsilon from the distance of two means. An ESTIMATE: it assumes normal scores.

    With s the pooled standard deviation, :math:`\hat\mu = (\bar x_{in} - \bar x_{out}) / s`, whose lower limit follows
    from the non-central t distribution. Tight for a Gaussian mechanism seen through independent white-box scores of
    equal variance. Where the scores are anything else it may lie on either side of the truth, so it never decides.
    """
    inside, outside = scores[member], scores[~member]
    n, m = len(inside), len(outside)
    freedom = n + m - 2
    if min(n, m) < 2:
        return 0.0
    squares = (n - 1) * float(inside.var(ddof=1)) + (m - 1) * float(outside.var(ddof=1))
    if squares <= 0:
        return 0.0
    weight = math.sqrt(n * m / (n + m))
    value = float(inside.mean() - outside.mean()) / math.sqrt(squares / freedom) * weight
    error = 1.0 - confidence
    if value <= 0 or student.sf(value, freedom) > error:
        return 0.0
    shift = brentq(lambda c: nct.sf(value, freedom, c) - error, 0.0, value + 5.0)
    return gdp_epsilon(float(shift) / weight, delta)


@dataclass(frozen=True)
class Bound:
    """A way to bound epsilon from below."""

    compute: Callable[[Scores, Members, float], float]  # scores, coins and delta to a bound, at 95 % confidence
    assumes: str  # its assumptions in words
    estimate: bool = False  # rests on the scores being normal, so that it decides nothing


BOUNDS: dict[str, Bound] = {
    "steinke": Bound(steinke_epsilon, "fair coins; any mechanism"),
    "f-dp": Bound(fdp_epsilon, "fair coins; any mechanism"),
    "f-dp-gaussian": Bound(fdp_gaussian, "fair coins; a Gaussian mechanism without sampling"),
    "clopper-pearson": Bound(clopper_pearson_epsilon, "independent trials; any mechanism"),
    "clopper-pearson-gaussian": Bound(
        clopper_pearson_gaussian, "independent trials; a Gaussian mechanism without sampling"
    ),
    "gaussian-estimate": Bound(gaussian_estimate, "independent normal scores", estimate=True),
}
"""Every bound by name; each has a coverage test."""


def attainable(name: str, canaries: int, delta: float) -> float | None:
    """Return the bound that all guesses about ``canaries`` canaries being right would give; None for an estimate."""
    bound = BOUNDS[name]
    if bound.estimate:
        return None
    member = np.arange(canaries) % 2 == 0
    return bound.compute(member.astype(np.float64), member, delta)
