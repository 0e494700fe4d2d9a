"""Lower bounds on epsilon from independent trials: exact binomial limits on the error rates.

The trials must be independent: many runs, or many canaries that cannot influence each other. The threshold is chosen
on one half of the scores and judged on the other, so that choosing it does not weaken the bound.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta

from carefl_secure.audit.bounds.one_run import Members, Scores, gdp_epsilon


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
    scores : ndarray of float64, shape [canaries]
        Higher means "was in".
    member : ndarray of bool, shape [canaries]
    confidence : float
        Probability that the bound holds.
    seed : int
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
