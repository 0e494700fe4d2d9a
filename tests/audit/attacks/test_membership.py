"""Membership scores on losses whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.audit.attacks.canaries import claimed_curve
from carefl_secure.audit.attacks.membership import AdapterView, Membership, judge_membership
from carefl_secure.privacy import SampledGaussian

COUNT = 600


def view(memorised: float, seed: int = 0) -> tuple[AdapterView, np.ndarray]:
    """Records differ in how hard they are; training lowers the losses of members."""
    rng = np.random.default_rng(seed)
    member = np.arange(2 * COUNT) < COUNT
    base = 1.0 + rng.gamma(2.0, 0.5, 2 * COUNT)
    others = 1.0 + rng.gamma(2.0, 0.5, COUNT)
    tuned = base - 0.3 + rng.normal(0, 0.1, 2 * COUNT) - memorised * member
    return AdapterView(tuned, base, others - 0.3 + rng.normal(0, 0.1, COUNT), others), member


def test_a_model_that_memorised_is_seen_and_best_against_the_base() -> None:
    seen, member = view(0.5)
    by_name = {f.check: f for f in judge_membership(Membership()(seen), member, None)}
    assert by_name["calibrated"].figures["AUC"] > 0.99  # type: ignore[operator]
    assert by_name["population"].figures["AUC"] > 0.7  # type: ignore[operator]
    assert 0.5 < by_name["loss"].figures["AUC"] < 0.9  # type: ignore[operator]
    assert {f.verdict for f in by_name.values()} == {"measured"}


def test_a_model_that_did_not_is_not_accused() -> None:
    ceilings = {0.01: 0.02, 0.001: 0.003}
    for seed in range(20):
        seen, member = view(0.0, seed)
        findings = judge_membership(Membership()(seen), member, ceilings)
        assert {f.verdict for f in findings} == {"passed"}
        assert all(abs(f.figures["AUC"] - 0.5) < 0.08 for f in findings)  # type: ignore[operator]


def test_a_leaking_model_passes_its_ceiling() -> None:
    seen, member = view(0.5)
    findings = judge_membership(Membership()(seen), member, {0.01: 0.2, 0.001: 0.06})
    assert "falsified" in {f.verdict for f in findings}
    assert all(f"ceiling at {r:g} FPR" in f.figures for f in findings for r in (0.01, 0.001))


def test_rates_are_those_of_a_direct_count() -> None:
    seen, member = view(0.2)
    scores = Membership()(seen)["calibrated"]
    (finding,) = judge_membership({"calibrated": scores}, member, None)
    outside = np.sort(scores[~member])[::-1]
    allowed = int(0.01 * COUNT)  # false alarms
    threshold = outside[allowed]
    assert finding.figures["TPR at 0.01 FPR"] == pytest.approx(np.mean(scores[member] > threshold))


def test_the_claimed_curve_errs_towards_less_protection() -> None:
    curve = claimed_curve([SampledGaussian(1.0, 1.0)])
    from scipy.special import ndtr, ndtri

    for mass in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        exact = ndtr(ndtri(mass) - 1.0)
        assert exact * 0.8 - 1e-4 < curve(mass) <= exact + 1e-9
    assert curve(0.0) == 0.0
