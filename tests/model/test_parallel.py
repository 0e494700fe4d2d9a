from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from carefl_secure.errors import ConfigError
from carefl_secure.model.loader import ParallelBatches
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum


def test_results_come_in_order_and_at_once() -> None:
    together = threading.Barrier(3, timeout=30)

    def work(number: int) -> int:
        together.wait()  # breaks unless three run at the same time
        return number * number

    assert list(ParallelBatches(3)(work, [3, 1, 2])) == [9, 1, 4]


def test_one_batch_at_a_time_stays_in_the_calling_thread() -> None:
    assert set(ParallelBatches()(lambda _: threading.get_ident(), range(3))) == {threading.get_ident()}


def test_every_worker_has_one_torch_thread_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert set(ParallelBatches(2)(lambda _: torch.get_num_threads(), range(4))) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_batch_is_raised() -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"):
        list(ParallelBatches(2)(fail, range(4)))


def test_no_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one batch"):
        ParallelBatches(0)


def test_the_same_sum_in_any_number_of_workers() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    module = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    rows = torch.from_numpy(random.normal(size=(40, 6)).astype(np.float32))
    indices = np.arange(40)

    def losses(chosen: np.ndarray) -> torch.Tensor:
        return module(rows[torch.from_numpy(chosen)]).square().sum(1)

    def total(parallel_batches: int) -> np.ndarray:
        return clipped_sum(
            module,
            list(module.named_parameters()),
            losses,
            indices,
            Clipping(0.5, False, micro_batch=8),
            parallel_batches=ParallelBatches(parallel_batches),
        ).vector

    one = total(1)
    assert np.linalg.norm(one) > 0
    for parallel_batches in (2, 5):
        assert np.array_equal(one, total(parallel_batches))
