"""Gradients of groups of records: what is clipped where the unit is a person."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carefl_secure.errors import ConfigError

Members = NDArray[np.float64]
"""Weights [groups, records] of one micro-batch: ``1 / size`` where the record is in the group."""


def group_chunks(
    indices: NDArray[np.int64], groups: NDArray[np.int64], micro_batch: int
) -> Iterator[tuple[NDArray[np.int64], Members, bool]]:
    """Cut records into micro-batches that never split a group, unless it alone is too large.

    Yields
    ------
    tuple
        Records [B]; weights [groups, B] of the mean over each whole group; and whether the groups
        are complete. Of a group larger than ``micro_batch`` several parts come in a row, the last
        one marked, whose weighted sums must be added before anything is clipped.
    """
    if groups.shape != indices.shape or not np.issubdtype(groups.dtype, np.integer):
        raise ConfigError(
            f"groups of shape {groups.shape} do not fit {indices.shape[0]} records; "
            "name the group of each record by a whole number"
        )
    if not indices.size:
        return
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    waiting: list[NDArray[np.int64]] = []
    for group in np.split(indices[order], starts[1:]):
        if waiting and sum(map(len, waiting)) + len(group) > micro_batch:
            yield _whole(waiting)
            waiting = []
        if len(group) > micro_batch:
            for start in range(0, len(group), micro_batch):
                part = group[start : start + micro_batch]
                weights = np.full((1, len(part)), 1.0 / len(group))
                yield part, weights, start + micro_batch >= len(group)
        else:
            waiting.append(group)
    if waiting:
        yield _whole(waiting)


def _whole(groups: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], Members, bool]:
    sizes = np.array([len(group) for group in groups])
    rows = np.repeat(np.arange(len(groups)), sizes)
    weights = np.zeros((len(groups), len(rows)))
    weights[rows, np.arange(len(rows))] = 1.0 / sizes[rows]
    return np.concatenate(groups), weights, True


@torch.no_grad()
def means_of_groups(gradients: list[Tensor | None], weights: Members) -> list[Tensor | None]:
    """Turn gradients per record [B, ...] into weighted sums per group [groups, entries]."""
    out: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is None:
            out.append(None)
            continue
        matrix = torch.as_tensor(weights, dtype=gradient.dtype, device=gradient.device)
        # Not a matrix product: zero times infinity would spread one record's fault to all groups.
        rows = torch.as_tensor(weights.argmax(0), device=gradient.device)
        scaled = gradient.flatten(1) * matrix.max(0).values[:, None]
        total = torch.zeros((len(weights), scaled.shape[1]), dtype=gradient.dtype, device=gradient.device)
        out.append(total.index_add_(0, rows, scaled))
    return out


@torch.no_grad()
def added(one: list[Tensor | None], other: list[Tensor | None]) -> list[Tensor | None]:
    """Add the parts of one large group, parameter by parameter."""
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]
