"""Membership inference by the holder of the adapter: was a picture in the training set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

from carefl_secure.audit.views import Attack, Figure, Finding

Losses = npt.NDArray[np.float64]
RATES = (0.01, 0.001)
_OFFLINE = 0.3  # of the RMIA paper: how far a reference without the record stands for both
_RATIO = 1.0
_SLACK = 3.0


@dataclass(frozen=True)
class AdapterView:
    """The losses that somebody with the released adapter, the public base and some pictures sees."""

    tuned: Losses  # [candidates], with the adapter
    base: Losses  # [candidates], without it
    population_tuned: Losses  # the same for pictures certainly not trained on
    population_base: Losses


class Membership(Attack[AdapterView, dict[str, Losses]]):
    r"""Three scores of membership, from losses alone.

    ``loss``: :math:`-\ell`. ``calibrated``: :math:`\ell_{base} - \ell`, where the base model is a
    reference that never saw the record. ``population``: the share of population pictures z with
    :math:`\frac{p(x)/\bar p(x)}{p(z)/\bar p(z)} \ge 1`, :math:`p = e^{-\ell}` and
    :math:`\bar p = ((1 + a) p_{base} + 1 - a) / 2` with a = 0.3.

    References
    ----------
    Yeom et al., CSF 2018; Watson et al., ICLR 2022; Zarifzadeh, Liu, Shokri, "Low-Cost
    High-Power Membership Inference Attacks" (RMIA), ICML 2024, offline with one reference.
    """

    name = "membership"
    adversary = "a user of the released adapter"
    view = AdapterView

    def attack(self, view: AdapterView) -> dict[str, Losses]:
        """Return one score per candidate and kind; higher means "was trained on"."""
        own = _ratio(view.tuned, view.base)
        others = np.sort(_ratio(view.population_tuned, view.population_base))
        beaten = np.searchsorted(others, own / _RATIO, side="right") / max(1, others.size)
        return {"loss": -view.tuned, "calibrated": view.base - view.tuned, "population": beaten}


def _ratio(tuned: Losses, base: Losses) -> Losses:
    reference = 0.5 * ((1.0 + _OFFLINE) * np.exp(-base) + 1.0 - _OFFLINE)
    return np.asarray(np.exp(-tuned) / reference)


def judge_membership(
    scores: Mapping[str, Losses], member: npt.NDArray[np.bool_], ceilings: Mapping[float, float] | None
) -> list[Finding]:
    """Compare the ROC figures of each score with the ceiling that the accountant proves.

    ``member`` is bool [candidates]; ``ceilings`` are the largest true-positive rate by false-positive rate, None where
    nothing is promised. A finding is ``falsified`` where a rate exceeds its ceiling by three standard errors.
    Candidates of one run are not independent, so this is an alarm rather than a confidence statement; and a rate below
    the ceiling proves nothing, another attack may do better.
    """
    findings = []
    inside, outside = int(member.sum()), int((~member).sum())
    for name, values in scores.items():
        area = float(roc_auc_score(member, values))
        false, true, _ = roc_curve(member, values, drop_intermediate=False)
        figures: dict[str, Figure] = {"AUC": area, "members": inside, "others": outside}
        error = math.sqrt(area * (1 - area) / min(inside, outside)) if min(inside, outside) else 0.0
        figures["AUC standard error, at most"] = error
        words = [f"{name}: AUC {area:.3f}"]
        broken = False
        for rate in RATES:
            reached = float(true[np.searchsorted(false, rate, side="right") - 1])
            figures[f"TPR at {rate:g} FPR"] = reached
            words.append(f"TPR {reached:.4f} at {rate:g} FPR")
            if ceilings is not None:
                # The false-positive rate is itself an estimate: grant it its own error.
                ceiling = ceilings[rate]
                spread = math.sqrt(max(reached * (1 - reached), 1 / inside) / inside)
                drift = math.sqrt(rate * (1 - rate) / outside) * ceiling / rate
                figures[f"ceiling at {rate:g} FPR"] = ceiling
                words[-1] += f" (ceiling {ceiling:.4f})"
                broken |= reached > ceiling + _SLACK * math.hypot(spread, drift)
        for point in np.linspace(0.0, 1.0, 21):
            figures[f"ROC at {point:.2f}"] = float(true[np.searchsorted(false, point, side="right") - 1])
        verdict = "falsified" if broken else "measured" if ceilings is None else "passed"
        findings.append(
            Finding(Membership.name, name, verdict, ", ".join(words) + ".", figures)  # type: ignore[arg-type]
        )
    return findings
