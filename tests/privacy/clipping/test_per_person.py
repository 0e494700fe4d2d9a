"""Sums of clipped gradients of persons: exact, bounded, and not what clipping records gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.clipping.clipped_sum import Clipping, Engine, clipped_sum
from carefl_secure.privacy.clipping.per_record import group_chunks

ENGINES: tuple[Engine, ...] = ("native", "opacus")
RECORDS = 18
GROUPS = np.array([4, 4, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 9, 1, 1, 1, 1, 4])  # sizes 3, 7, 3, 1, 4


class Toy:
    def __init__(self) -> None:
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 5, bias=False))
        self.rows = torch.randn(RECORDS, 3, 6)
        self.rows[::4] *= 0.01
        self.parameters = list(self.module.named_parameters())
        self.sizes: list[int] = []

    def losses(self, indices: NDArray[np.int64]) -> Tensor:
        self.sizes.append(indices.size)
        out: Tensor = self.module(self.rows[torch.from_numpy(indices)])
        return (out - 1).square().sum((1, 2))

    def sum(self, indices: NDArray[np.int64], groups: Any, **settings: Any) -> NDArray[np.float64]:
        given: dict[str, Any] = {"norm": 1.0, "normalise": False, "micro_batch": 5} | settings
        return clipped_sum(self.module, self.parameters, self.losses, indices, Clipping(**given), groups=groups).vector

    def gradient(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        parts = torch.autograd.grad(self.losses(indices).mean(), [p for _, p in self.parameters])
        return torch.cat([g.flatten() for g in parts]).double().numpy()


ALL = np.arange(RECORDS)


def reference(toy: Toy, indices: NDArray[np.int64], normalise: bool) -> NDArray[np.float64]:
    total = np.zeros(sum(p.numel() for _, p in toy.parameters))
    for group in np.unique(GROUPS[indices]):
        gradient = toy.gradient(indices[GROUPS[indices] == group])
        norm = float(np.linalg.norm(gradient))
        total += gradient / (norm + 0.01) if normalise else gradient * min(1.0, 1.0 / norm)
    return total


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 100])
def test_persons_are_clipped_by_the_definition(engine: Engine, normalise: bool, micro_batch: int) -> None:
    toy = Toy()
    found = toy.sum(ALL, GROUPS, engine=engine, normalise=normalise, micro_batch=micro_batch)
    np.testing.assert_allclose(found, reference(toy, ALL, normalise), rtol=1e-4, atol=1e-5)


def test_clipping_records_one_by_one_is_something_else() -> None:
    """The person with seven records would count up to sevenfold."""
    toy = Toy()
    one = np.flatnonzero(GROUPS == 0)
    whole = toy.sum(one, GROUPS[one])
    single = toy.sum(one, None)
    assert np.linalg.norm(whole) <= 1.0
    assert np.linalg.norm(single) > 2.0
    assert np.linalg.norm(toy.sum(ALL, None) - reference(toy, ALL, False)) > 1.0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("person", np.unique(GROUPS).tolist())
def test_removing_a_person_moves_the_sum_by_at_most_the_norm(engine: Engine, normalise: bool, person: int) -> None:
    toy = Toy()
    toy.rows *= 50  # large gradients: the bound must come from clipping
    rest = np.flatnonzero(person != GROUPS)
    for norm in (1.0, 0.1):
        settings: dict[str, Any] = {"engine": engine, "normalise": normalise, "norm": norm}
        moved = toy.sum(ALL, GROUPS, **settings) - toy.sum(rest, GROUPS[rest], **settings)
        assert np.linalg.norm(moved) <= norm * (1 + 1e-6)


def test_a_huge_person_stays_within_memory_and_bound() -> None:
    toy = Toy()
    everyone = np.zeros(RECORDS, np.int64)
    found = toy.sum(ALL, everyone, micro_batch=4)
    assert max(toy.sizes) <= 4
    gradient = toy.gradient(ALL)
    expected = gradient * min(1.0, 1.0 / float(np.linalg.norm(gradient)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("micro_batch", [2, 32])
def test_a_person_with_an_unfit_record_contributes_zero(engine: Engine, micro_batch: int) -> None:
    toy = Toy()
    others = ALL[GROUPS[3] != GROUPS]
    expected = toy.sum(others, GROUPS[others], engine=engine, micro_batch=micro_batch)
    toy.rows[3] = float("nan")
    found = toy.sum(ALL, GROUPS, engine=engine, micro_batch=micro_batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_no_group_is_parted_unless_it_is_too_large() -> None:
    rng = np.random.default_rng(5)
    for micro_batch in (1, 2, 5, 8):
        groups = rng.integers(0, 12, 40)
        indices = rng.permutation(100)[:40]
        weight = np.zeros(100)
        seen: dict[int, int] = {}
        for number, (chunk, weights, last) in enumerate(group_chunks(indices, groups, micro_batch)):
            assert chunk.size <= micro_batch
            np.testing.assert_array_equal((weights > 0).sum(0), 1)
            weight[chunk] += weights.sum(0)
            for group in np.unique(groups[np.isin(indices, chunk)]):
                large = (groups == group).sum() > micro_batch
                assert large or group not in seen
                assert last or large
                seen[int(group)] = number
        sizes = np.array([(groups == g).sum() for g in groups])
        np.testing.assert_allclose(weight[indices], 1.0 / sizes)
        assert weight.sum() == pytest.approx(len(np.unique(groups)))


def test_groups_must_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        Toy().sum(ALL, GROUPS[:-1])
    with pytest.raises(ConfigError, match="do not fit"):
        Toy().sum(ALL, GROUPS.astype(float))


def test_padding_counts_no_person_more() -> None:
    toy = Toy()
    for chosen in (GROUPS == 4, GROUPS < 4, GROUPS > 10):
        drawn = ALL[chosen]
        plain = toy.sum(drawn, GROUPS[chosen])
        toy.sizes.clear()
        clipping = Clipping(1.0, False, micro_batch=5)
        padded = clipped_sum(
            toy.module, toy.parameters, toy.losses, drawn, clipping, groups=GROUPS[chosen], rows=RECORDS
        )
        np.testing.assert_allclose(padded.vector, plain, rtol=1e-6, atol=1e-9)
        assert sum(toy.sizes) == RECORDS and padded.records == drawn.size
