"""Banded noise against the figures of jax_privacy 2.0.0, written by ``make_vectors.py``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.privacy import epsilon
from carefl_secure.privacy.accounting.events import SampledGaussian
from carefl_secure.privacy.banded import choose_bands, coefficients, norm, running_error
from tests.support.federation import known_plan

FIGURES: dict[str, Any] = json.loads((Path(__file__).parent / "vectors/jax_privacy.json").read_text())
DELTA, MOMENTA = FIGURES["delta"], FIGURES["momenta"]


def cycles(row: dict[str, Any], noise: float) -> SampledGaussian:
    return SampledGaussian(min(1.0, row["bands"] * row["rate"]), noise, math.ceil(row["rounds"] / row["bands"]))


@pytest.mark.parametrize("row", FIGURES["noise"], ids=lambda r: "q{rate} T{rounds} b{bands} e{epsilon}".format(**r))
def test_the_noise_under_cyclic_poisson_sampling(row: dict[str, Any]) -> None:
    """Their noise costs what they say, within the grids of the two accounts (1e-4), and less of it costs more."""
    assert epsilon([cycles(row, row["noise_multiplier"])], DELTA) == pytest.approx(row["epsilon"], rel=4e-4)
    assert epsilon([cycles(row, 0.998 * row["noise_multiplier"])], DELTA) > row["epsilon"]


@pytest.mark.parametrize("row", FIGURES["given_coefficients"], ids=lambda r: str(r["coefficients"]))
def test_sensitivity_and_errors_of_given_coefficients(row: dict[str, Any]) -> None:
    numbers, rounds = row["coefficients"], row["rounds"]
    meetings = math.ceil(rounds / len(numbers))
    if rounds % len(numbers) == 0:
        assert norm(numbers) * math.sqrt(meetings) == pytest.approx(row["sensitivity"], rel=1e-9)
    else:  # the last meeting is cut short by the end of the run; our price counts it whole
        assert norm(numbers) * math.sqrt(meetings) > row["sensitivity"] > norm(numbers) * math.sqrt(meetings - 1)
    for momentum, error in zip(MOMENTA, row["errors"], strict=True):
        assert running_error(numbers, rounds, momentum) == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("row", FIGURES["least_error"], ids=lambda r: "T{rounds} b{bands} m{momentum}".format(**r))
def test_whole_numbers_come_near_the_least_error(row: dict[str, Any]) -> None:
    """Their optimizer, over real coefficients; ours are whole numbers, for 0.5 % more error at the most."""
    chosen = coefficients(row["bands"], row["rounds"], row["momentum"])
    found = running_error(chosen, row["rounds"], row["momentum"])
    assert row["error"] * (1.0 - 1e-6) <= found <= 1.0055 * row["error"]


def test_what_bands_gain_by_their_figures() -> None:
    noise = {(r["rate"], r["rounds"], r["bands"], r["epsilon"]): r["noise_multiplier"] for r in FIGURES["noise"]}
    error = {(r["rounds"], r["bands"], r["momentum"]): r["error"] for r in FIGURES["least_error"]}
    for rate, rounds, bands in ((0.2, 20, 5), (0.05, 40, 20)):
        for target in (8.0, 2.0):
            for momentum in MOMENTA:
                theirs = noise[rate, rounds, bands, target] * error[rounds, bands, momentum]
                theirs /= noise[rate, rounds, 1, target] * running_error((1,), rounds, momentum)
                assert choose_bands(rounds, rate, target, DELTA, momentum, bands)[1] == pytest.approx(theirs, rel=0.01)


def test_integer_noise_in_a_plan_costs_little_more_than_their_gaussian() -> None:
    """Their central Gaussian noise against the noise of a whole plan: Skellam shares, rounding, one encoding."""
    row = next(r for r in FIGURES["noise"] if (r["rounds"], r["bands"], r["epsilon"]) == (20, 5, 8.0))
    plan = known_plan(8, 96_282, public_records=8000, rounds=20, sample_rate=0.2, correlation=(5, 4, 4, 3, 3))
    assert 1.0 <= plan.privacy.noise_multiplier / row["noise_multiplier"] <= 1.003
