from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.data.corpora.base import FileCorpus
from carefl_secure.data.corpora.emotic.mat import load_emotic
from carefl_secure.data.partition import partition
from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import ConfigError, DataError


def one_hot(count: int, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.arange(count) % classes]


def corpus(sites: list[str | None]) -> FileCorpus:
    records = [
        Record(str(i), (0,), f"p{i // 2}", {} if site is None else {"site": site}) for i, site in enumerate(sites)
    ]
    return FileCorpus("c", LabelSpace("s", ("x",), multi=False), records, [])


@given(
    count=st.integers(40, 200),
    clients=st.integers(1, 6),
    alpha=st.floats(5, 1e4),
    kind=st.sampled_from(["iid", "dirichlet"]),
    seed=st.integers(0, 50),
)
def test_every_record_has_one_owner_and_nobody_is_empty(
    count: int, clients: int, alpha: float, kind: str, seed: int
) -> None:
    parts = partition(one_hot(count, 5), clients, kind, alpha=alpha, seed=seed)  # type: ignore[arg-type]
    assert len(parts) == clients
    assert all(len(part) and part.dtype == np.int64 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_the_seed_decides(kind: str) -> None:
    def owners(seed: int) -> list[list[int]]:
        labels = one_hot(100, 5)
        return [p.tolist() for p in partition(labels, 4, kind, alpha=1, seed=seed)]  # type: ignore[arg-type]

    assert owners(1) == owners(1)
    assert owners(1) != owners(2)


def test_iid_parts_are_even() -> None:
    assert sorted(map(len, partition(one_hot(103, 5), 8))) == [12] + [13] * 7


def skew(alpha: float) -> float:
    """Return the mean share of a client's commonest label."""
    labels = one_hot(4000, 5)
    parts = partition(labels, 4, "dirichlet", alpha=alpha, seed=0)
    return float(np.mean([labels[part].mean(0).max() for part in parts]))


def test_small_alpha_is_more_skew() -> None:
    assert skew(0.1) > skew(1) > skew(1e5)
    assert skew(1e5) == pytest.approx(0.2, abs=0.02)


def test_dirichlet_goes_by_the_rarest_label() -> None:
    """With almost no spread in a class, all records of the rare label sit together."""
    labels = np.zeros((120, 3), np.float32)
    labels[:, 0] = 1  # everybody has the common label
    labels[:60, 1] = 1
    labels[:20, 2] = 1  # the rarest: 20 records, which also carry the other two
    parts = partition(labels, 3, "dirichlet", alpha=1e-3, seed=0)
    shares = np.array([(part < 20).sum() for part in parts])
    assert sorted(shares.tolist())[-1] == 20
    middle = np.array([((part >= 20) & (part < 60)).sum() for part in parts])
    assert sorted(middle.tolist())[-1] == 40


def test_records_without_a_label_are_shared_out_too() -> None:
    labels = one_hot(60, 3)
    labels[:20] = 0
    parts = partition(labels, 3, "dirichlet", alpha=10, seed=0)
    assert sum(map(len, parts)) == 60


def test_column_keeps_each_value_with_one_client() -> None:
    sites = ["n"] * 10 + ["s"] * 6 + ["e"] * 5 + ["w"] * 1
    whole = corpus(sites)
    parts = partition(whole, 2, "column", column="site")
    held = [{sites[i] for i in part} for part in parts]
    assert set.union(*held) == set("nsew")
    assert not set.intersection(*held)
    assert sorted(map(len, parts)) == [11, 11]
    parts = partition(whole, 5, "column", column="subject")
    people = [{whole.records[i].subject for i in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 11


def test_column_errors() -> None:
    with pytest.raises(ConfigError, match="2 values, too few for 3"):
        partition(corpus(["n", "s", "n"]), 3, "column", column="site")
    with pytest.raises(DataError, match=r"'1' has no 'site'.*site, subject"):
        partition(corpus(["n", None]), 2, "column", column="site")
    with pytest.raises(ConfigError, match=r"data\.column"):
        partition(corpus(["n", "s"]), 2, "column")
    with pytest.raises(ConfigError, match="needs a corpus"):
        partition(one_hot(4, 2), 2, "column", column="site")


def test_impossible_requests() -> None:
    labels = one_hot(10, 2)
    with pytest.raises(ConfigError, match="10 records cannot"):
        partition(labels, 11)
    with pytest.raises(ConfigError, match="cannot"):
        partition(labels, 0)
    with pytest.raises(ConfigError, match=r"raise data\.alpha"):
        partition(labels, 10, "dirichlet", alpha=1e-3)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="positive"):
            partition(labels, 2, "dirichlet", alpha=alpha)
    with pytest.raises(ConfigError, match="unknown partition"):
        partition(labels, 2, "shards")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two dimensions"):
        partition(labels[0], 2)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
@pytest.mark.parametrize("together", [False, True])
def test_persons_of_one_image_stay_at_one_client(make: Any, kind: Any, together: bool) -> None:
    """A row of EMOTIC is a person; two rows of one image hold the same pixels."""
    people = [make.train_person(["Peace"]), make.train_person(["Fear", "Pain"])]
    images = [make.emotic_image(f"{k}.jpg", people[: 1 + k % 2]) for k in range(24)]
    corpus = load_emotic(make.emotic(train=images))["train"]
    assert len(corpus.records) == 36
    parts = partition(corpus, 4, kind, alpha=2.0, seed=3, together=together)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(36))
    owners = [{corpus.records[i].key.split("#")[0] for i in part} for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 24
    again = partition(corpus, 4, kind, alpha=2.0, seed=3, together=together)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ConfigError, match="24 persons or images"):
        partition(corpus, 25, kind, together=together)
