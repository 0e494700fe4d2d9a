"""The setting `privacy.mechanism`: what it picks, what it refuses, and what it says."""

from __future__ import annotations

import pytest

from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError
from carefl_secure.runs.plan_from_config import correlation_of, mechanism_text, plan_with


def test_the_default_is_independent_and_says_nothing() -> None:
    config = load_config()
    assert correlation_of(config) is None
    plan = plan_with(config, 8000, 500)
    assert (plan.privacy.bands, mechanism_text(config, plan)) == (1, "")


def test_auto_takes_what_leaves_less_noise() -> None:
    config = load_config(None, ["privacy.mechanism=auto"]).with_sample_rate()
    plan = plan_with(config, 8000, 500)
    assert plan.privacy.bands == 5
    assert plan.privacy.round_rate == 1.0
    said = mechanism_text(config, plan)
    assert "banded noise of 5 bands, 0.70 of the error" in said
    assert "0.90 where 2 of 8 clients miss each round" in said
    unsure = load_config(
        None, ["privacy.mechanism=auto", "privacy.epsilon=4"]
    ).with_sample_rate()  # 0.84, but not with dropouts
    plan = plan_with(unsure, 8000, 500)
    assert plan.privacy.correlation is None
    assert "5 bands leave 0.84 of the error" in mechanism_text(unsure, plan)
    assert "1.07 where 2 of 8" in mechanism_text(unsure, plan)
    plain = load_config(
        None, ["privacy.mechanism=auto", "privacy.epsilon=2", "federation.aggregator=fedavg", "federation.momentum=0"]
    ).with_sample_rate()
    plan = plan_with(plain, 8000, 500)
    assert plan.privacy.correlation is None
    assert "independent noise: 2 bands leave 1.0" in mechanism_text(plain, plan)
    person = load_config(None, ["privacy.mechanism=auto", "privacy.unit=person"])
    assert correlation_of(person) is None
    assert "cannot be used with privacy.unit=person" in mechanism_text(person, plan_with(person, 8000, 500))


def test_bands_can_be_fixed() -> None:
    config = load_config(None, ["privacy.mechanism=banded", "privacy.bands=3"]).with_sample_rate()
    assert len(correlation_of(config) or ()) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["privacy.unit=client", "adapter.train=B"], "privacy.unit=client"),
        (["privacy.trust=none", "adapter.train=B"], "privacy.trust=none"),
        (["adapter.train=alternate"], "adapter.train=alternate"),
        (["stages.spaces=[basic,compound]"], "stages.spaces"),
        (["privacy.sample_rate=0.6"], "privacy.sample_rate=0.6"),
        (["privacy.bands=6"], "above 5"),
    ],
)
def test_what_bands_cannot_be_used_with(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, ["privacy.mechanism=banded", *settings])


def test_bands_without_the_mechanism_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no effect"):
        load_config(None, ["privacy.bands=4"])
