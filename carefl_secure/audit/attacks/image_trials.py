"""Gradient matching of pictures against a plain update, a sum, a masked upload, and noise."""

from __future__ import annotations

import dataclasses

import numpy as np

from carefl_secure.audit.attacks.image_inversion import FeatureInversion, ImageMatching, Pictures, masked, noisy
from carefl_secure.audit.bounds.clopper_pearson import lower_limit, rate_figures
from carefl_secure.audit.views import Figure, Finding, Verdict
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy.accounting.attack_bounds import attacker_bounds

_ERROR = 1e-4


def counted_noise(plan: RunPlan) -> float:
    """Return the standard deviation of the counted noise over the norm of one record."""
    return plan.noise_multiplier * plan.privacy.sensitivity / plan.privacy.clipping_norm


def pick_ceiling(plan: RunPlan, candidates: int) -> float | None:
    r"""Bound the probability to pick the right one of N equally likely records from one round.

    A test that says "it is record i" has a false-positive rate :math:`f_i` without any of them, and
    :math:`\sum_i f_i = 1`. With T the concave ceiling of the true-positive rate, the probability to
    be right is at most :math:`\frac1N \sum_i T(f_i) \le T(1/N)`. The record is assumed to be in the
    sample, so sampling lends nothing; None without privacy.
    """
    if plan.event is None:
        return None
    event = dataclasses.replace(plan.event, sample_rate=1.0, count=1)
    rate = 1.0 / candidates
    return attacker_bounds([event], [rate]).true_positive_rate[rate]


def judge_images(
    pictures: Pictures,
    *,
    clients: int,
    noise_multiplier: float,
    ceiling: float | None,
    trials: int = 100,
    seed: int = 0,
) -> list[Finding]:
    """Try to pick the record behind an update among candidates.

    ``clients`` updates of one record each are summed; ``noise_multiplier`` is the standard
    deviation of the counted noise over the clipping norm, 0 leaves noise out; ``ceiling`` is from
    :func:`pick_ceiling`; ``seed`` decides the choice of records.

    Plain updates and sums are ``measured``. Under masks or noise ``falsified`` means that the lower
    limit of the hit rate, at an error of 1e-4, lies above chance or the ceiling.
    """
    attack, rng = ImageMatching(), np.random.default_rng([seed, 0x1A])
    kinds = ["plain", "sum", "masked", *(["noise"] if noise_multiplier > 0 else [])]
    hits = dict.fromkeys(kinds, 0)
    for _ in range(trials):
        truth = int(rng.integers(pictures.count))
        one = pictures.update(truth)
        others = pictures.count + rng.choice(pictures.fillers, clients - 1)
        shown = {
            "plain": one,
            "sum": one + np.sum([pictures.update(int(i)) for i in others], axis=0),
            "masked": masked(one),
        }
        if noise_multiplier > 0:
            shown["noise"] = noisy(one, noise_multiplier)
        for kind, update in shown.items():
            hits[kind] += int(np.argmax(attack(pictures.seen(update)))) == truth
    words = {
        "plain": "one client's plain update of one record",
        "sum": f"the plain sum of {clients} clients with one record each",
        "masked": "one client's masked upload",
        "noise": "one record under the noise that the run counts",
    }
    chance = 1.0 / pictures.count
    limits = {"masked": chance, "noise": 1.0 if ceiling is None else ceiling}
    findings = []
    for kind in kinds:
        rate = rate_figures("hit rate", hits[kind], trials)
        _, low, high = rate.values()
        figures: dict[str, Figure] = {**rate, "chance": chance, "candidates": pictures.count, "trials": trials}
        verdict: Verdict = "measured"
        bound = ""
        if kind in limits:
            figures["ceiling"] = limits[kind]
            bound = f", ceiling {limits[kind]:.3f}"
            verdict = "falsified" if lower_limit(hits[kind], trials, _ERROR) > limits[kind] else "passed"
        findings.append(
            Finding(
                ImageMatching.name,
                kind,
                verdict,
                f"From {words[kind]} the right one of {pictures.count} pictures was picked in {hits[kind]} of "
                f"{trials} trials (95 % {low:.3f} to {high:.3f}, chance {chance:.3f}{bound}).",
                figures,
            )
        )
    return findings


def invert_images(
    pictures: Pictures, *, noise_multiplier: float, trials: int = 3, steps: int = 100, only: str | None = None
) -> list[Finding]:
    """Rebuild image features from updates by optimisation, without candidates.

    All findings are ``measured``: no promise covers cosines. The first ``trials`` records are
    tried, with ``steps`` of the optimiser; ``only`` picks one situation, ``plain``, ``masked`` or
    ``noise``; ``noise_multiplier`` is as in :func:`judge_images`.
    """
    attack = FeatureInversion(steps)
    kinds = ["plain", "masked", *(["noise"] if noise_multiplier > 0 else [])]
    findings = []
    if only is not None:
        kinds = [kind for kind in kinds if kind == only]
    for kind in kinds:
        cosines, hits = [], 0
        for index in range(trials):
            update = pictures.update(index)
            if kind == "masked":
                update = masked(update)
            elif kind == "noise":
                update = noisy(update, noise_multiplier)
            found = attack(pictures.blind(update, index))
            cosines.append(pictures.likeness(found, index))
            hits += pictures.nearest(found) == index
        mean = float(np.mean(cosines))
        findings.append(
            Finding(
                FeatureInversion.name,
                f"inversion, {kind}",
                "measured",
                f"Features rebuilt from {kind} updates of one record have a centred cosine of {mean:.2f} with the "
                f"true ones; in {hits} of {trials} trials the true picture is the nearest of {pictures.count}.",
                {
                    "cosine": mean,
                    "least cosine": float(min(cosines)),
                    "largest cosine": float(max(cosines)),
                    **rate_figures("hit rate", hits, trials),
                    "trials": trials,
                    "steps": steps,
                },
            )
        )
    return findings
