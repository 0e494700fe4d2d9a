from __future__ import annotations

import pytest

from carefl_secure.data.label_spaces import (
    BASIC,
    BASIC_TO_CAERS,
    CAERS,
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


def test_the_published_map_from_rafdb_basic_to_caers() -> None:
    published = {1: 6, 2: 2, 3: 1, 4: 3, 5: 5, 6: 0, 7: 4}  # RAF-DB counts from 1
    assert {k + 1: v for k, v in BASIC_TO_CAERS.items()} == published
    stem = {BASIC.labels[a][:3]: CAERS.labels[b][:3] for a, b in BASIC_TO_CAERS.items()}
    assert all(a == b for a, b in stem.items())


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
