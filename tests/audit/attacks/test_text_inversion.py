"""The span check reads an unprotected update and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.audit.attacks import image_inversion as disguise
from carefl_secure.audit.attacks.text_inversion import SpanCheck, Texts, UpdateView, judge_spans, recall
from carefl_secure.audit.views import Finding
from carefl_secure.model.loader import load_base


def judged(train: str, length: int = 16, rank: int = 8, noise: float = 0.6) -> dict[str, Finding]:
    texts = Texts(load_base(quantization="none"), rank=rank, alpha=16, train=train, length=length)
    findings = judge_spans(texts, clients=8, noise_multiplier=noise, clipping_norm=1.0, trials=6, private_text=True)
    return {f.check: f for f in findings}


def test_a_plain_update_gives_its_text_away_and_a_protected_one_does_not() -> None:
    found = judged("both")
    # the last token of a text has no loss and leaves no trace
    assert found["plain"].figures["recall"] >= 0.9  # type: ignore[operator]
    assert found["plain"].verdict == found["sum"].verdict == "measured"
    assert found["masked"].verdict == found["noise"].verdict == "passed"
    for kind in ("masked", "noise"):
        figures = found[kind].figures
        assert figures["recall"] < figures["chance"] + 0.1  # type: ignore[operator]


def test_training_b_alone_bounds_what_shows() -> None:
    short, long = judged("B", length=6), judged("B", length=24)
    assert short["plain"].figures["recall"] > 0.5  # type: ignore[operator]
    assert long["plain"].figures["recall"] < 0.3  # type: ignore[operator]


def test_noise_that_is_none_is_falsified() -> None:
    found = judged("both", noise=1e-6)
    assert found["noise"].verdict == "falsified"
    assert "noise" not in judged("both", noise=0.0)


def test_masks_that_do_nothing_are_falsified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disguise, "add_masks", lambda words, keys, signs: None)
    assert judged("both")["masked"].verdict == "falsified"


def test_the_span_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 40))
    inside = np.array([3, 77, 150])
    rows = rng.normal(size=(6, 3)) @ inputs[inside]
    residuals = SpanCheck()(UpdateView(((rows, inputs),)))
    assert set(np.argsort(residuals)[:3]) == set(inside) and recall(residuals, inside) == 1.0


@pytest.mark.parametrize("rows", [np.zeros((4, 8)), np.zeros((0, 8))])
def test_nothing_gives_chance(rows: np.ndarray) -> None:
    inputs = np.random.default_rng(0).normal(size=(50, 8))
    residuals = SpanCheck()(UpdateView(((rows, inputs),)))
    assert recall(residuals, np.array([1, 2])) == pytest.approx(0.04)
