"""Gradient matching names the picture behind a plain update, and nothing behind a protected one."""

from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.audit.attacks import image_inversion as disguise
from carefl_secure.audit.attacks.image_inversion import CandidateView, ImageMatching, Pictures
from carefl_secure.audit.attacks.image_trials import counted_noise, invert_images, judge_images, pick_ceiling
from carefl_secure.audit.replay.canary_run import plan_like
from carefl_secure.audit.views import Finding
from carefl_secure.config import Config, load_config
from carefl_secure.data.records import targets
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.build import label_scorer

CANDIDATES = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Return a few drawn scenes under the embedded model, its B as after some rounds."""
    corpus = synthetic_corpus("test", CANDIDATES + 6, seed=3, cache=tmp_path_factory.mktemp("c"))
    scorer = label_scorer(load_config(None, ["model.quantization=none"]), corpus.space)
    rng = np.random.default_rng(0)
    moved = (0.02 * rng.normal(size=scorer.adapter.dimension)).astype(np.float32)
    features = vision_features(scorer.adapter.base, corpus, SilentReporter())[:]
    return Pictures(scorer, moved, features, targets(corpus), candidates=CANDIDATES)


def judged(pictures: Pictures, noise: float, ceiling: float | None) -> dict[str, Finding]:
    found = judge_images(pictures, clients=4, noise_multiplier=noise, ceiling=ceiling, trials=60, seed=1)
    return {f.check: f for f in found}


def test_a_plain_update_names_its_picture_and_a_protected_one_does_not(pictures: Pictures) -> None:
    found = judged(pictures, 4.0, 0.5)
    assert found["plain"].figures["hit rate"] == 1.0
    assert found["sum"].figures["hit rate"] > 0.8  # type: ignore[operator]
    assert found["plain"].verdict == found["sum"].verdict == "measured"
    for kind in ("masked", "noise"):
        assert found[kind].verdict == "passed"
        # chance is 3 of 60; 24 and more come up with a probability below 1e-14
        assert found[kind].figures["hit rate"] < 0.4  # type: ignore[operator]


def test_thin_noise_is_falsified(pictures: Pictures) -> None:
    assert judged(pictures, 0.01, 0.5)["noise"].verdict == "falsified"
    assert "noise" not in judged(pictures, 0.0, None)


def test_masks_that_do_nothing_are_falsified(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disguise, "add_masks", lambda words, keys, signs: None)
    assert judged(pictures, 0.0, None)["masked"].verdict == "falsified"


def test_features_are_rebuilt_from_a_plain_update_alone(pictures: Pictures) -> None:
    (plain,) = invert_images(pictures, noise_multiplier=0.0, trials=1, steps=60, only="plain")
    assert plain.check == "inversion, plain" and plain.verdict == "measured"
    assert plain.figures["cosine"] > 0.25  # type: ignore[operator]
    for kind in ("masked", "noise"):
        (other,) = invert_images(pictures, noise_multiplier=4.0, trials=1, steps=10, only=kind)
        assert other.figures["cosine"] < 0.25  # type: ignore[operator]


def test_the_ceiling_is_between_chance_and_one_and_grows_with_epsilon() -> None:
    def ceiling(epsilon: float) -> float:
        plan = plan_like(load_config(None, [f"privacy.epsilon={epsilon}"]), 200, 1000)
        assert counted_noise(plan) == pytest.approx(plan.noise_multiplier)
        found = pick_ceiling(plan, 100)
        assert found is not None
        return found

    assert 0.01 < ceiling(2) < ceiling(8) < 1
    assert pick_ceiling(plan_like(open_config(), 64, 100), 100) is None


def open_config() -> Config:
    return load_config(None, ["privacy.unit=none"])


def test_the_cosine_finds_the_same_direction() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 30))
    scores = ImageMatching()(CandidateView(-3.0 * rows[2], rows))
    assert scores[2] == pytest.approx(-1.0) and np.argmin(scores) == 2
    assert not ImageMatching()(CandidateView(np.zeros(30), rows)).any()
    with pytest.raises(PrivacyError, match="CandidateView"):
        ImageMatching()(rows)  # type: ignore[arg-type]


def test_too_few_records_are_refused(pictures: Pictures) -> None:
    with pytest.raises(ConfigError, match="more records"):
        Pictures(
            pictures._scorer,
            np.zeros(1, np.float32),
            pictures.features[:5],
            np.zeros((5, 26), np.float32),
            candidates=5,
        )
