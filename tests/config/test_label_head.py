"""Which label head ``auto`` is."""

from __future__ import annotations

import pytest

from carefl_secure.config import load_config
from carefl_secure.config.root import stage_config
from carefl_secure.errors import ConfigError

OWN = "model.context=own"


@pytest.mark.parametrize(
    ("words", "head"),
    [
        ([], "linear"),
        ([OWN], "linear"),  # of the embedded base, where the other was not measured
        ([OWN, "model.base=owner/base"], "text"),
        (["model.base=owner/base"], "linear"),
        ([OWN, "model.base=owner/base", "adapter.targets=[q,v,connector]"], "linear"),
        ([OWN, "model.base=owner/base", "stages.spaces=[basic,compound]"], "linear"),
        (
            [
                OWN,
                "model.base=owner/base",
                "privacy.unit=none",
                "federation.aggregator=fedprox",
                "federation.local_steps=2",
            ],
            "none",
        ),
        ([OWN, "adapter.head=text"], "text"),
        ([OWN, "model.base=owner/base", "adapter.head=linear"], "linear"),
    ],
)
def test_auto_reads_captions_with_the_language_model(words: list[str], head: str) -> None:
    config = load_config(None, words)
    assert config.head == config.adapter.head == head
    if config.stages.spaces:
        assert stage_config(config, 0).head == head


@pytest.mark.parametrize("word", ["stages.spaces=[basic,compound]", "adapter.targets=[q,vision]"])
def test_a_head_that_reads_one_prompt_takes_no_stages_and_no_vision_side(word: str) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.head=linear"):
        load_config(None, [OWN, "adapter.head=text", word])
