from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.data.splits import Subset, groups, split
from carefl_secure.errors import ConfigError, DataError

SHARES = {"train": 0.7, "public": 0.1, "test": 0.2}


def corpus(*people: tuple[str, str | None]) -> FileCorpus:
    records = [Record(key, (0,), subject) for key, subject in people]
    return FileCorpus("c", LabelSpace("s", ("x",), multi=False), records, [])


def test_every_record_once_and_shares_met() -> None:
    parts = split(corpus(*((f"{i}.jpg", None) for i in range(1000))), SHARES, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 700, "public": 100, "test": 200}
    assert sorted(itertools.chain(*parts.values())) == list(range(1000))


@given(
    people=st.lists(st.one_of(st.none(), st.sampled_from("abcdefghij")), min_size=30, max_size=80),
    seed=st.integers(0, 99),
)
def test_nobody_stands_in_two_parts(people: list[str | None], seed: int) -> None:
    whole = corpus(*((f"{i // 2}.jpg#{i}", who) for i, who in enumerate(people)))
    try:
        parts = split(whole, SHARES, seed)
    except DataError:
        return
    for kind in ("subject", "image"):
        where: dict[str, set[str]] = {}
        for name, part in parts.items():
            for i in part:
                token = people[i] if kind == "subject" else str(i // 2)
                if token is not None:
                    where.setdefault(token, set()).add(name)
        assert all(len(names) == 1 for names in where.values())
    assert sorted(itertools.chain(*parts.values())) == list(range(len(people)))


def test_joining_goes_on_through_images_and_subjects() -> None:
    whole = corpus(("1.jpg", "a"), ("1.jpg#2", "b"), ("2.jpg", "b"), ("3.jpg", None))
    assert sorted(sorted(group) for group in groups(whole)) == [[0, 1, 2], [3]]


def test_subject_and_image_of_one_name_are_not_confused() -> None:
    assert len(groups(corpus(("a", "b"), ("b", "a")))) == 2


def test_same_seed_same_people_whatever_the_order_of_records() -> None:
    people = [(f"{i}.jpg", f"p{i // 3}") for i in range(90)]
    one = corpus(*people)
    other = corpus(*people[::-1])
    first, second = split(one, SHARES, 5), split(other, SHARES, 5)
    assert first == split(one, SHARES, 5)
    for name in SHARES:
        assert {one.records[i].key for i in first[name]} == {other.records[i].key for i in second[name]}
    assert first != split(one, SHARES, 6)


def test_share_of_zero_is_an_empty_part() -> None:
    parts = split(corpus(("a", None), ("b", None)), {"train": 0.5, "public": 0, "test": 0.5}, 0)
    assert parts["public"] == []


def test_too_few_people() -> None:
    with pytest.raises(DataError, match="would be empty"):
        split(corpus(("a", "s"), ("b", "s"), ("c", "s")), SHARES, 0)


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}, {}])
def test_bad_shares(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split(corpus(("a", None)), shares, 0)


def test_subset_is_a_corpus() -> None:
    class Tinted(FileCorpus):
        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (1, 1), (index, 0, 0))

    whole = corpus(("a", None), ("b", None), ("c", None))
    part = Subset(Tinted(whole.name, whole.space, whole.records, []), [2, 0])
    assert [r.key for r in part.records] == ["c", "a"]
    assert np.asarray(part.image(0))[0, 0, 0] == 2
    assert (part.name, part.space) == (whole.name, whole.space)
    again = Subset(part, [1])
    assert [r.key for r in again.records] == ["a"]
    for wrong in (-1, 2):
        with pytest.raises(DataError, match="outside"):
            Subset(part, [wrong])
