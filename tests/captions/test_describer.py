"""The describer of the embedded corpus: true at rate 0, wrong as often as asked, per record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.captions.prompts import STAND_IN, describe_corpus
from carefl_secure.data.splits import Subset
from carefl_secure.data.synthetic.corpus import SyntheticCorpus, synthetic_corpus
from carefl_secure.data.synthetic.scene import GROUPS
from carefl_secure.errors import ConfigError


@pytest.fixture(scope="module")
def corpus() -> SyntheticCorpus:
    return synthetic_corpus("private", 300)


def test_without_errors_it_tells_the_truth(corpus: SyntheticCorpus) -> None:
    for said, factors in zip(describe_corpus(corpus, 0, 0), corpus.scenes.factors, strict=True):
        truth = dict(zip(GROUPS, factors, strict=True))
        for group in ("posture", "setting", "prop", "light"):
            assert GROUPS[group][truth[group]] in said


def test_errors_come_at_the_set_rate(corpus: SyntheticCorpus) -> None:
    true = [c.split(", ") for c in describe_corpus(corpus, 0, 0)]
    wrong = [c.split(", ") for c in describe_corpus(corpus, 0.4, 0)]
    column = list(GROUPS).index("setting")
    differing = np.mean([a[1] != b[1] for a, b in zip(true, wrong, strict=True)])
    values = len(GROUPS["setting"])
    assert GROUPS["setting"][corpus.scenes.factors[0][column]] == true[0][1]
    assert abs(differing - 0.4 * (1 - 1 / values)) < 0.1
    assert describe_corpus(corpus, 0.4, 0) == describe_corpus(corpus, 0.4, 0)
    assert describe_corpus(corpus, 0.4, 0) != describe_corpus(corpus, 0.4, 1)


def test_a_record_is_described_alike_whoever_else_is_there(corpus: SyntheticCorpus) -> None:
    whole = describe_corpus(corpus, 0.5, 3)
    part = describe_corpus(Subset(corpus, [250, 3, 77]), 0.5, 3)
    assert part == [whole[250], whole[3], whole[77]]
    by_key = {r.key: said for r, said in zip(corpus.records, whole, strict=True)}
    fewer = synthetic_corpus("private", 300, task="compound")  # only some of the same scenes
    assert len(fewer.records) < 300
    assert describe_corpus(fewer, 0.5, 3) == [by_key[record.key] for record in fewer.records]


def test_other_images_are_not_known(corpus: SyntheticCorpus, pictures: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="carefl-secure caption"):
        describe_corpus(pictures(0), 0, 0)
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="error rate"):
            describe_corpus(corpus, rate, 0)
    assert "no captioning model was run" in STAND_IN.format(rate=0.1)
