"""Which settings of unit, steps and aggregator go together, and what ``auto`` stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from carefl_secure.config import Config, dump_config, load_config
from carefl_secure.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "moves", "steps", "rate"),
    [
        ([], False, 1, "auto"),
        (["privacy.unit=person"], False, 1, "auto"),
        (["privacy.unit=person", "privacy.records_per_person=2"], False, 1, "auto"),
        (["privacy.unit=none"], False, 1, "auto"),
        (["privacy.unit=client"], True, 10, "auto"),
        (["privacy.trust=none"], True, 5, "auto"),
        (["privacy.trust=none", "federation.aggregator=fedprox"], True, 5, 1.0),
        (["privacy.unit=none", "federation.aggregator=feddyn"], True, 10, 1.0),
        (["privacy.unit=none", "federation.local_steps=3"], True, 3, "auto"),
        (["privacy.unit=client", "federation.local_steps=1"], True, 1, "auto"),
        (["privacy.unit=client", "federation.aggregator=fedavg"], True, 10, 0.1),
        (["federation.aggregator=fedavg"], False, 1, "auto"),
        (["federation.server_lr=0.5"], False, 1, 0.5),
    ],
)
def test_one_word_is_enough_and_auto_becomes_a_number(
    words: list[str], moves: bool, steps: int, rate: float | str, tmp_path: Path
) -> None:
    config = load_config(None, words)
    assert config.sums_updates is moves
    assert config.federation.local_steps == config.local_steps == steps
    assert config.federation.server_lr == (rate if rate == "auto" else pytest.approx(rate))
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_the_local_rate_fits_the_kind_of_gradient() -> None:
    assert load_config(None, ["privacy.unit=client"]).federation.local_lr == 10.0
    assert load_config(None, ["privacy.trust=none"]).federation.local_lr == 0.3
    words = ["privacy.unit=client", "federation.local_lr=0.5"]
    assert load_config(None, words).local_lr == 0.5


def test_the_defaults_are_those_of_one_sum_of_gradients() -> None:
    assert (Config().local_steps, Config().server_lr, Config().sums_updates) == (1, None, False)
    assert Config().with_server_lr(0.5).server_lr == 0.5


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["federation.local_steps=2"], "one sum of gradients"),
        (["privacy.unit=person", "federation.local_steps=2"], "set federation.local_steps=1"),
        (["federation.aggregator=fedprox"], "without local steps"),
        (["federation.aggregator=feddyn"], "privacy.trust=none"),
        (["privacy.unit=person", "federation.aggregator=feddyn"], "without local steps"),
        (
            ["privacy.unit=none", "federation.aggregator=fedprox", "federation.local_steps=1"],
            "federation.local_steps above 1",
        ),
        (["privacy.unit=client", "federation.aggregator=fedprox", "federation.local_steps=1"], "second local step"),
        (["privacy.unit=client", "adapter.train=both"], "not the mean of their products"),
        (["privacy.trust=none", "adapter.train=both"], "adapter.train=alternate"),
        (["privacy.unit=none", "federation.local_steps=4", "adapter.train=both"], "not the mean of their products"),
        (["privacy.unit=client", "federation.aggregator=feddyn"], "privacy.normalise=false"),
        (["privacy.trust=none", "federation.aggregator=feddyn", "adapter.train=alternate"], "set adapter.train=B"),
        (["privacy.unit=person", "privacy.trust=none"], "privacy.unit=record"),
        (["privacy.unit=client", "privacy.trust=none"], "privacy.trust=secagg"),
        (["privacy.unit=none", "privacy.trust=none"], "privacy.trust=secagg"),
        (["privacy.records_per_person=2"], "set privacy.unit=person"),
        (["simulation.stragglers=0.3"], "there is only one"),
        (["privacy.unit=none", "federation.noise_correction=true"], "privacy.unit other than none"),
        (["federation.aggregator=fedavg", "federation.noise_correction=true"], "federation.aggregator=fedadam"),
        (["privacy.trust=none", "federation.aggregator=fedprox", "federation.proximal_mu=10"], "overshoots"),
    ],
)
def test_contradictions_say_what_to_set(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["privacy.unit=client", "adapter.train=alternate"],
        ["privacy.trust=none", "simulation.stragglers=0.3"],
        ["privacy.trust=none", "federation.noise_correction=true"],
        ["federation.noise_correction=true"],
        ["privacy.unit=client", "federation.aggregator=feddyn", "privacy.normalise=false"],
        ["privacy.unit=none", "federation.local_steps=4", "federation.aggregator=fedprox"],
        ["data.partition=quantity", "data.alpha=0.3"],
        ["privacy.unit=none", "adapter.train=both"],
    ],
)
def test_what_fits_is_taken(words: list[str]) -> None:
    load_config(None, words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "set privacy.normalise=false"),
        (["privacy.unit=none"], "set privacy.unit=record"),
        (["privacy.trust=none"], "set privacy.trust=secagg"),
        (["privacy.unit=person", "privacy.records_per_person=2"], "set privacy.records_per_person=null"),
        (["adapter.train=alternate"], "set adapter.train=B"),
        (["stages.spaces=[basic,compound]"], "set stages.spaces=[]"),
        (["privacy.unit=client", "federation.aggregator=feddyn"], "set federation.aggregator=fedprox"),
        (["privacy.mechanism=banded"], "set privacy.mechanism=independent"),
    ],
)
def test_a_norm_cannot_follow_a_quantile_everywhere_and_what_to_set_instead_works(words: list[str], part: str) -> None:
    more = [*words, "privacy.target_unclipped_quantile=0.5", *(["privacy.normalise=false"] if words else [])]
    with pytest.raises(ConfigError) as told:
        load_config(None, more)
    assert "privacy.target_unclipped_quantile" in str(told.value) and part in str(told.value)
    setting = part.removeprefix("set ")
    kept = [word for word in more if word.partition("=")[0] != setting.partition("=")[0]]
    assert load_config(None, [*kept, setting]).privacy.target_unclipped_quantile == 0.5


def test_auto_takes_independent_noise_where_the_norm_follows_a_quantile() -> None:
    words = ["privacy.mechanism=auto", "privacy.normalise=false", "privacy.target_unclipped_quantile=0.5"]
    assert load_config(None, words).rules_out_bands == "privacy.target_unclipped_quantile"
