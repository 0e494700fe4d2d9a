"""Attribute inference is judged by what training added, not by what a picture shows anyway."""

from __future__ import annotations

import numpy as np

from carefl_secure.audit.attacks.attributes import AttributeInference, AttributeView, Person, judge_attributes

COUNT = 500


def people(rng: np.random.Generator, count: int, leak: np.ndarray) -> tuple[Person, np.ndarray]:
    values = rng.random(count) < 0.5
    labels = rng.random((count, 4)) < 0.3
    base = rng.normal(size=(count, 4)) + 0.3 * values[:, None]
    tuned = base + 0.1 * rng.normal(size=(count, 4))
    tuned[:, 0] += 6.0 * leak * (values - 0.5)
    return Person(labels.astype(float), base, tuned), np.where(values, "a", "b")


def gain(leak: float) -> tuple[float, float, str]:
    rng = np.random.default_rng(2)
    member = np.arange(2 * COUNT) < COUNT
    targets, truth = people(rng, 2 * COUNT, leak * member)
    known, values = people(rng, COUNT, leak * np.ones(COUNT))
    guesses = AttributeInference()(AttributeView(targets, known, values))
    finding = judge_attributes("hair", guesses, truth, member)
    figures = finding.figures
    return (
        float(figures["gain by training, members less others"]),  # type: ignore[arg-type]
        float(figures["standard error"]),  # type: ignore[arg-type]
        finding.verdict,
    )


def test_a_model_that_memorised_shows_a_gain() -> None:
    found, error, verdict = gain(1.0)
    assert found > 5 * error > 0 and verdict == "measured"


def test_what_the_base_knows_is_no_gain() -> None:
    found, error, _ = gain(0.0)
    assert abs(found) < 3 * error
