"""Micro-batches in parallel: on a few cores, two one-thread passes beat one two-thread pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

from carefl_secure.errors import ConfigError

Item = TypeVar("Item")
Found = TypeVar("Found")


class ParallelBatches:
    """A ``map`` that works on ``count`` items at once, one torch thread for each.

    The layers of a small model are too short for torch's own threads. A large model fills the cores by itself: a count
    of 1 works in the calling thread with torch's own threads. Each item in work has activations of its own.

    Guarantees
    ----------
    Results come in the order of the items, so a sum over them does not depend on which was ready
    first. An error of any item is raised, that of the first failed one, after all have ended.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ConfigError(f"there must be at least one batch at a time, not {count}")
        self._count = count

    @classmethod
    def for_small(cls) -> ParallelBatches:
        """Return a worker for each of torch's threads, four at most, for a small model."""
        return cls(min(4, torch.get_num_threads()))

    def __call__(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Return ``function`` of each item, in order; it must set torch's gradient mode itself.

        Items are taken as they are needed, a few ahead.
        """
        work = iter(items)
        first = list(islice(work, 2 * self._count)) if self._count > 1 else []
        if len(first) < 2:
            return map(function, chain(first, work))
        return self._side_by_side(function, first, work)

    def _side_by_side(
        self, function: Callable[[Item], Found], first: list[Item], work: Iterator[Item]
    ) -> Iterator[Found]:
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(min(self._count, len(first)), "batch", torch.set_num_threads, (1,)) as pool:
                waiting = deque(pool.submit(function, item) for item in first)
                while waiting:
                    found = waiting.popleft().result()
                    waiting.extend(pool.submit(function, item) for item in islice(work, 1))
                    yield found
        finally:
            torch.set_num_threads(before)  # new threads take the number that was set last
