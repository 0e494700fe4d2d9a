"""Whose caption a record gets, and that no private record decides another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.captions.controls import CONSTANT, CONTROLS, Donors, arrange, drop
from carefl_secure.data.records import BASIC, CAERS, Record
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError

Make = Callable[..., Any]


@pytest.fixture
def private(pictures: Make) -> Any:
    return pictures(*range(40))


@pytest.fixture
def donors(pictures: Make) -> Donors:
    corpus = pictures(*range(100, 130))
    corpus.records = [Record(f"open-{i}", r.labels) for i, r in enumerate(corpus.records)]
    return Donors(corpus, [f"words {i}" for i in range(30)])


def own(corpus: Any) -> list[str]:
    return [f"mine {record.key}" for record in corpus.records]


def test_none_own_and_constant(private: Any, donors: Donors) -> None:
    assert arrange("none", private, own(private), donors, 0) is None
    assert arrange("own", private, own(private), None, 0) == own(private)
    assert set(arrange("constant", private, None, None, 0) or []) == {CONSTANT}


def test_shuffled_spreads_over_the_donors_and_follows_the_seed(private: Any, donors: Donors) -> None:
    first = arrange("shuffled", private, None, donors, 0) or []
    assert set(first) <= set(donors.captions) and len(set(first)) > 15
    assert first == arrange("shuffled", private, None, donors, 0)
    assert first != arrange("shuffled", private, None, donors, 1)


def test_wrong_has_no_label_in_common(private: Any, donors: Donors) -> None:
    given = arrange("wrong", private, None, donors, 0) or []
    for record, caption in zip(private.records, given, strict=True):
        donor = donors.corpus.records[list(donors.captions).index(caption)]
        assert not set(donor.labels) & set(record.labels)
    plain = arrange("shuffled", private, None, donors, 0) or []
    same = [
        set(donors.corpus.records[list(donors.captions).index(c)].labels) & set(r.labels)
        for r, c in zip(private.records, plain, strict=True)
    ]
    assert any(same)  # shuffled makes no such promise, so the test above says something


def test_wrong_takes_the_least_overlap_where_none_is_free_of_it(pictures: Make) -> None:
    corpus = pictures(0, labels=[(0, 1)])
    others = pictures(1, 2, 3, labels=[(0, 1), (0, 2), (0, 1, 2)])
    others.records = [Record(f"o{i}", r.labels) for i, r in enumerate(others.records)]
    assert arrange("wrong", corpus, None, Donors(others, ["a", "b", "c"]), 0) == ["b"]
    equal = Donors(Subset(others, [0]), ["a"])
    with pytest.raises(DataError, match="no caption is a wrong one"):
        arrange("wrong", corpus, None, equal, 0)


@pytest.mark.parametrize("control", CONTROLS)
def test_taking_a_record_away_changes_no_other_caption(private: Any, donors: Donors, control: Any) -> None:
    """What the guarantee per record rests on: neighbours differ in one record's words only."""
    for gone in (0, 17, 39):
        kept = [i for i in range(40) if i != gone]
        rest = Subset(private, kept)
        whole = arrange(control, private, own(private), donors, 5)
        part = arrange(control, rest, own(rest), donors, 5)
        assert part == (None if whole is None else [whole[i] for i in kept])
        if whole is not None:
            left = drop(whole, private, 0.5, 5)
            assert drop(part or [], rest, 0.5, 5) == [left[i] for i in kept]


def test_a_record_never_gets_its_own_words_back(donors: Donors) -> None:
    for control in ("shuffled", "wrong"):
        for seed in range(5):
            given = arrange(control, donors.corpus, None, donors, seed) or []  # type: ignore[arg-type]
            assert all(a != b for a, b in zip(given, donors.captions, strict=True))
    alone = Donors(Subset(donors.corpus, [0]), ["x"])
    for control in ("shuffled", "wrong"):
        with pytest.raises(DataError, match="no other public record"):
            arrange(control, alone.corpus, None, alone, 0)  # type: ignore[arg-type]


def test_dropout_leaves_about_the_share_out(private: Any) -> None:
    said = own(private)
    assert drop(said, private, 0, 0) == said
    assert drop(said, private, 1, 0) == [""] * 40
    empty = np.array([[not c for c in drop(said, private, 0.3, s)] for s in range(50)])
    assert 0.25 < empty.mean() < 0.35
    assert drop(said, private, 0.3, 1) != drop(said, private, 0.3, 2)
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError):
            drop(said, private, rate, 0)


def test_what_a_control_lacks_is_said(private: Any, donors: Donors) -> None:
    with pytest.raises(ConfigError, match="public records"):
        arrange("shuffled", private, own(private), None, 0)
    with pytest.raises(ConfigError, match="one caption for each"):
        arrange("own", private, own(private)[1:], None, 0)
    with pytest.raises(ConfigError, match="unknown control"):
        arrange("both", private, None, donors, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one for each"):
        Donors(donors.corpus, ["x"])
    private.space = CAERS
    assert donors.corpus.space == BASIC
    with pytest.raises(ConfigError, match="labels"):
        arrange("wrong", private, None, donors, 0)
