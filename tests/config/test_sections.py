from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from carefl_secure.config import Config, default_min_survivors, dump_config, load_config
from carefl_secure.config.explain import KNOWN
from carefl_secure.errors import ConfigError


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    return str(caught.value)


def test_every_setting_is_described() -> None:
    assert [key for key, field in KNOWN.items() if not field.description] == []


def test_nothing_can_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Config().privacy.epsilon = 9.0  # type: ignore[misc]


@pytest.mark.parametrize(("clients", "floor"), [(3, 3), (4, 3), (5, 4), (6, 5), (8, 6), (100, 67)])
def test_default_min_survivors(clients: int, floor: int) -> None:
    assert default_min_survivors(clients) == floor


@pytest.mark.parametrize("value", ["0", "-1", ".nan", ".inf", "-.inf", "nan", "true", "[]", "null"])
@pytest.mark.parametrize("key", ["privacy.epsilon", "privacy.delta", "privacy.sample_rate", "privacy.clipping_norm"])
def test_privacy_numbers_must_be_positive_and_finite(key: str, value: str) -> None:
    assert refused(f"{key}={value}").startswith(f"{key}: ")


@pytest.mark.parametrize(
    "word",
    [
        "privacy.sample_rate=1.01",
        "privacy.delta=1",
        "privacy.unit=patient",
        "privacy.trust=server",
        "privacy.records_per_person=0",
        "federation.local_steps=0",
        "federation.local_steps=many",
        "federation.local_lr=0",
        "federation.server_lr=0",
        "federation.aggregator=scaffold",
        "federation.proximal_mu=-1",
        "federation.feddyn_alpha=0",
        "simulation.stragglers=1",
        "data.partition=shards",
        "privacy.max_colluders=-1",
        "federation.clients=0",
        "federation.clients=8.5",
        "federation.clients=true",
        "simulation.dropout=1",
        "federation.betas=[0.9, 1.0]",
        "federation.aggregation=masks",
        "federation.aggregation=true",
        "federation.committee_members=1",
        "federation.committee_members=6",
        "federation.committee_members=2.5",
        "federation.min_survivors=most",
        "adapter.rank=0",
        "adapter.targets=[]",
        "adapter.targets=q",
        "adapter.targets=[q, q]",
        "adapter.targets=[q_proj]",
        "adapter.train=C",
        "adapter.last_layers=0",
        "performance.micro_batch=0",
        "data.public_fraction=0",
        "model.quantization=fp8",
        "model.context=captions",
        "data.test_fraction=0",
        "data.alpha=0",
        "run.name=../up",
        "run.name=a/b",
        "run.name=.hidden",
        "unsafe_deterministic_noise=maybe",
    ],
)
def test_out_of_range_names_its_key(word: str) -> None:
    key = word.partition("=")[0]
    text = refused(word)
    assert text.startswith(f"{key}: ")
    assert KNOWN[key].description in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data.public_fraction=0.5", "data.test_fraction=0.5"], "nothing to train on"),
        (["data.partition=column"], "needs data.column"),
        (["data.column=site"], "has no effect"),
        (["model.revision=abc"], "embedded"),
        (["federation.min_survivors=5"], "below floor(2n/3)+1 = 6"),
        (["federation.min_survivors=9"], "more than federation.clients=8"),
        (["simulation.dropout=0.5"], "lower simulation.dropout"),
        (["federation.clients=2"], "learn the other's"),
        (["federation.clients=3", "simulation.dropout=0.1"], "fewer than the 3 that it needs"),
        (["data.source=photos", "data.records=100"], "a folder is taken whole"),
        (["federation.committee_members=5"], "has no effect"),
        (["federation.aggregation=encrypted", "federation.committee_members=2"], "has no effect"),
        (["federation.committee_dropout_tolerance=1"], "federation.committee_dropout_tolerance=1 has no effect"),
        (["federation.aggregation=committee", "federation.committee_dropout_tolerance=2"], "at least 5"),
        (["federation.clients=1001"], "set federation.aggregation=committee"),
        (["federation.clients=1001", "federation.aggregation=encrypted"], "at most 1000 clients"),
    ],
)
def test_contradictions(words: list[str], part: str) -> None:
    assert part in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["federation.aggregation=encrypted"],
        ["federation.aggregation=committee"],
        ["federation.aggregation=committee", "federation.committee_members=5"],
        ["federation.aggregation=committee", "federation.committee_dropout_tolerance=1"],
        ["federation.aggregation=committee", "federation.clients=1001"],
    ],
)
def test_every_way_of_summing_is_read_back_as_written(words: list[str], tmp_path: Path) -> None:
    config = load_config(None, words)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert Config().federation.aggregation == "pairwise"
    flagged = load_config(None, (), aggregation="committee")
    assert flagged.federation.aggregation == "committee"


def test_three_clients_need_everybody() -> None:
    config = load_config(None, ["federation.clients=3"])
    assert (config.federation.min_survivors, config.simulation.dropout) == (3, 0)


def test_the_layers_that_are_adapted_by_default_follow_from_the_base(tmp_path: Path) -> None:
    assert len(load_config(None, ()).adapter.targets) == 7
    config = load_config(None, ["model.base=some/model"])
    assert config.adapter.targets == ("q", "v")
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml", ["model.base=embedded"]).adapter.targets == ("q", "v")
    assert load_config(None, ["model.base=some/model", "adapter.targets=[o]"]).adapter.targets == ("o",)
    assert "stages have several" in refused("adapter.warm_start=public", "stages.spaces=[basic, compound]")
