from __future__ import annotations

import pytest

from carefl_secure.data.records import (
    BASIC,
    CEXPR,
    COMPOUND,
    COMPOUND_TO_CEXPR,
    EMOTIC,
    PUBLISHED_SPACES,
    SPACES,
    label_space,
)
from carefl_secure.errors import ConfigError


def test_emotic_is_alphabetical_and_has_26() -> None:
    assert len(EMOTIC.labels) == 26
    assert list(EMOTIC.labels) == sorted(EMOTIC.labels)
    assert EMOTIC.multi


def test_the_published_map_from_rafdb_compound_to_cexpr() -> None:
    published = {8: 0, 1: 1, 5: 2, 11: 3, 9: 4, 3: 5, 4: 6}
    assert {k + 1: v for k, v in COMPOUND_TO_CEXPR.items()} == published
    assert all(COMPOUND.labels[a] == CEXPR.labels[b] for a, b in COMPOUND_TO_CEXPR.items())


def test_the_embedded_tokenizer_still_sees_the_words_it_was_made_from() -> None:
    assert list(SPACES) == ["emotic", "basic", "compound"]
    assert list(PUBLISHED_SPACES) == [*SPACES, "caers", "cexpr", "fer2013"]
    assert label_space("basic") is BASIC
    with pytest.raises(ConfigError, match="unknown label space"):
        label_space("caers")
