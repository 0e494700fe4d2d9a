"""Exposure of planted secrets: what the bench of audits shows of them, with a bound on epsilon."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.attacks.exposure import Exposure, Losses
from carefl_secure.audit.bounds.one_run import fdp_epsilon, steinke_epsilon
from carefl_secure.audit.views import Figure, Finding

_LEAST_COINS = 20


def judge_exposure(
    exposures: Losses,
    truth: npt.NDArray[np.int64],
    planted: npt.NDArray[np.bool_],
    delta: float,
    *,
    what: str,
    coins: bool,
) -> Finding:
    """Compare planted secrets with others that were never planted.

    ``exposures``, float64 [canaries, space], come from :class:`Exposure`; ``truth``, int64
    [canaries], is the index of each canary's own secret; ``what`` says what the secrets are. Only
    if fair ``coins`` decided what is ``planted``, bool [canaries], is there a bound on epsilon, at
    ``delta``. The finding is ``measured``, with the mean exposures and standard errors in bits.
    """
    own = exposures[np.arange(len(truth)), truth]
    inside, outside = own[planted], own[~planted]

    def error(values: Losses) -> float:
        return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan

    space = exposures.shape[1]
    first = int(np.sum(inside >= math.log2(space) - 1e-9))
    figures: dict[str, Figure] = {
        "exposure of planted": float(inside.mean()),
        "standard error of planted": error(inside),
        "exposure of others": float(outside.mean()),
        "standard error of others": error(outside),
        "largest possible": math.log2(space),
        "planted": int(planted.sum()),
        "others": int((~planted).sum()),
        "ranked first": first,
    }
    words = (
        f"{what}: {len(inside)} planted secrets have a mean exposure of {inside.mean():.2f} of "
        f"{math.log2(space):.2f} bits (standard error {error(inside):.2f}), {len(outside)} that "
        f"were not {outside.mean():.2f} ({error(outside):.2f}); {first} planted ones rank first."
    )
    if coins and len(truth) >= _LEAST_COINS:
        for name, bound in (("steinke", steinke_epsilon), ("f-dp", fdp_epsilon)):
            figures[f"epsilon lower bound: {name}"] = bound(own, planted, delta)
        words += f" Lower bound on epsilon {figures['epsilon lower bound: f-dp']:.2f} at 95 %."
    return Finding(Exposure.name, what, "measured", words, figures)
