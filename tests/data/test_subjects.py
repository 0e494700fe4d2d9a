from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.partition import partition
from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.data.splits import first_of_each, subject_groups
from carefl_secure.data.synthetic.corpus import synthetic_corpus
from carefl_secure.errors import ConfigError


def corpus(subjects: list[str | None], sites: list[str] | None = None) -> FileCorpus:
    records = [
        Record(str(i), (i % 3,), subject, {"site": sites[i]} if sites else {}) for i, subject in enumerate(subjects)
    ]
    return FileCorpus("c", LabelSpace("s", ("x", "y", "z"), multi=False), records, [])


def test_records_of_one_subject_are_one_person_and_others_are_alone() -> None:
    found = subject_groups(corpus(["a", None, "b", "a", None, "a"]).records)
    assert [g.tolist() for g in found] == [[0, 3, 5], [1], [2], [4]]
    share = np.array([5, 2, 0])
    assert [g.tolist() for g in subject_groups(corpus(["a"] * 6).records, share)] == [[0, 1, 2]]


def test_the_first_records_of_each_are_kept() -> None:
    groups = subject_groups(corpus(["a", "a", "b", "a", "b", None]).records)
    assert first_of_each(groups, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(groups, 1).tolist() == [0, 2, 5]
    assert first_of_each([], 1).tolist() == []
    with pytest.raises(ConfigError):
        first_of_each(groups, 0)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_a_person_stays_at_one_client(kind: str) -> None:
    rng = np.random.default_rng(3)
    subjects: list[str | None] = [f"p{i}" for i in rng.integers(0, 40, 200)]
    subjects[::17] = [None] * len(subjects[::17])
    whole = corpus(subjects)
    parts = partition(whole, 5, kind, alpha=2.0, seed=1, together=True)  # type: ignore[arg-type]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(200))
    owner = {i: c for c, part in enumerate(parts) for i in part.tolist()}
    for group in subject_groups(whole.records):
        assert len({owner[i] for i in group.tolist()}) == 1
    apart = partition(whole, 5, kind, alpha=2.0, seed=1)  # type: ignore[arg-type]
    owner = {i: c for c, part in enumerate(apart) for i in part.tolist()}
    assert any(len({owner[i] for i in g.tolist()}) > 1 for g in subject_groups(whole.records))


def test_a_column_that_parts_a_person_is_refused() -> None:
    sites = ["n", "s", "n", "s", "n", "s"]
    with pytest.raises(ConfigError, match="several clients"):
        partition(corpus(["a", "a", "b", "c", "d", "e"], sites), 2, "column", column="site",
                  together=True)  # fmt: skip
    parts = partition(corpus(["a", "b", "a", "d", "a", "d"], sites), 2, "column", column="site",
                      together=True)  # fmt: skip
    assert sorted(p.tolist() for p in parts) == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(ConfigError, match="2 persons"):
        partition(corpus(["a", "a", "b"]), 3, together=True)
    with pytest.raises(ConfigError, match="needs a corpus"):
        partition(np.eye(3), 2, together=True)


def test_quantity_skews_sizes_and_leaves_nobody_empty() -> None:
    labels = np.eye(5, dtype=np.float32)[np.arange(400) % 5]
    skewed = sorted(map(len, partition(labels, 6, "quantity", alpha=0.5, seed=0)))
    even = sorted(map(len, partition(labels, 6, "quantity", alpha=1e4, seed=0)))
    assert skewed[0] >= 1 and sum(skewed) == 400
    assert skewed[-1] > 4 * skewed[0]
    assert even[-1] - even[0] < 20
    with pytest.raises(ConfigError, match="without records"):
        partition(labels[:6], 6, "quantity", alpha=1e-3)
    with pytest.raises(ConfigError, match="positive"):
        partition(labels, 6, "quantity", alpha=0.0)


def test_the_embedded_corpus_has_several_records_of_each_person(tmp_path: Path) -> None:
    drawn = synthetic_corpus("private", 12, cache=tmp_path)
    groups = subject_groups(drawn.records)
    assert [len(g) for g in groups] == [2] * 6
    looks = [
        {tuple(sorted((k, v) for k, v in drawn.records[i].attributes.items() if k != "setting"))
         for i in g.tolist()}
        for g in groups
    ]  # fmt: skip
    assert all(len(look) == 1 for look in looks)  # one person looks one way
