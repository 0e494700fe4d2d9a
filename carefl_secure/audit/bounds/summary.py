"""All lower bounds together: what each assumes, and the largest value it could have given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from carefl_secure.audit.bounds.clopper_pearson import clopper_pearson_epsilon, clopper_pearson_gaussian
from carefl_secure.audit.bounds.one_run import Members, Scores, fdp_epsilon, fdp_gaussian, gdp_epsilon, steinke_epsilon


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
    """A way to bound epsilon from below.

    ``compute(scores, member, delta)`` bounds at 95 % confidence; ``assumes`` are its assumptions in
    words; an ``estimate`` rests on the scores being normal, so that it decides nothing.
    """

    compute: Callable[[Scores, Members, float], float]
    assumes: str
    estimate: bool = False


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
    """Return the bound if every guess about ``canaries`` canaries were right; None for an estimate.

    A low bound means little where even a perfect attack could not have given a high one.
    """
    bound = BOUNDS[name]
    if bound.estimate:
        return None
    member = np.arange(canaries) % 2 == 0
    return bound.compute(member.astype(np.float64), member, delta)
