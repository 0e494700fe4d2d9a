"""Canary clients under the unit client: silent on our build, and not where the noise is thin."""

from __future__ import annotations

import numpy as np
import pytest

from carefl_secure.audit.attacks.client_canaries import ClientCanaries, judge_clients, rehearse_clients
from carefl_secure.audit.replay.canary_run import plan_like
from carefl_secure.audit.views import Finding
from carefl_secure.config import load_config
from carefl_secure.noise.skellam import SkellamSampler
from tests.audit.conftest import patch_everywhere, system

SETTINGS = ["federation.clients=8", "federation.rounds=20", "privacy.delta=0.0001"]
CLIENT = ("privacy.unit=client", "privacy.epsilon=2")


def judged(*more: str) -> tuple[Finding, np.ndarray, np.ndarray]:
    config = load_config(None, [*SETTINGS, *more])
    plan = plan_like(config, 64, 1)
    rehearsal, coins = rehearse_clients(config, system, plan)
    scores = ClientCanaries()(rehearsal.releases())
    assert scores.shape == coins.shape == (20, 8)
    return judge_clients(rehearsal, scores, coins), rehearsal.sums[:, :8], coins


def test_our_build_is_not_contradicted() -> None:
    finding, _, _ = judged(*CLIENT)
    assert finding.verdict == "passed"
    assert finding.figures["coins"] == 160


def test_thin_noise_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thinner(SkellamSampler):
        def __init__(self, variance: float) -> None:
            super().__init__(variance / 400)

    patch_everywhere(monkeypatch, "SkellamSampler", Thinner)
    finding, _, _ = judged(*CLIENT)
    assert finding.verdict == "falsified" and "CONTRADICT" in finding.words


def test_without_noise_every_coin_shows() -> None:
    finding, sums, coins = judged("privacy.unit=none", "privacy.sample_rate=1")
    assert finding.verdict == "skipped"
    assert finding.figures["epsilon lower bound: f-dp"] > 1.0  # type: ignore[operator]
    assert np.all(sums[coins] > 2 * np.abs(sums[~coins]).max())
