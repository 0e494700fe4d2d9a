"""The sum of clipped gradients of single records: the only thing a private step releases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.privacy.clipping.opacus import opacus_gradients
from carefl_secure.privacy.clipping.per_record import added, group_chunks, means_of_groups, native_gradients

Engine: TypeAlias = Literal["native", "opacus"]
Losses: TypeAlias = Callable[[NDArray[np.int64]], Tensor]

ParallelBatches: TypeAlias = Callable[
    [Callable[[NDArray[np.int64]], list[Tensor]], list[NDArray[np.int64]]], Iterable[list[Tensor]]
]
"""A ``map``, in order, that may work on several micro-batches at once."""

_ENGINES = {"native": native_gradients, "opacus": opacus_gradients}
_DUMMY = -1  # in place of an index: a record that is computed and does not count
_STABILITY = 0.01
# Clipping aims this much below the norm, so that float32 rounding stays inside it.
_MARGIN = 1e-6


@dataclass(frozen=True)
class Clipping:
    """How much one record adds to a sum, and how the engine splits gradients by record; ConfigError out of range."""

    norm: float  # bound C on the 2-norm of one record's (or one group's) term
    normalise: bool  # give every record nearly the same norm, which spares tuning C, in place of clipping
    engine: Engine = "native"  # who splits the gradients
    micro_batch: int = 32  # how many records go through the model at once; costs memory, never changes the sum
    adaptive: AdaptiveNorm | None = None  # what changes the norm from round to round

    def __post_init__(self) -> None:
        """Refuse what bounds nothing."""
        if not (math.isfinite(self.norm) and self.norm > 0.0):
            raise ConfigError(f"clipping_norm is {self.norm}; it must be a number above 0")
        if self.engine not in _ENGINES:
            raise ConfigError(f"clipping engine {self.engine!r} is unknown; choose native or opacus")
        if self.micro_batch < 1:
            raise ConfigError(f"micro_batch is {self.micro_batch}; it must be at least 1")


@dataclass(frozen=True, eq=False)
class ClippedSum:
    """A sum of clipped gradients, before noise: as secret as the records themselves.

    ``vector`` [D] follows the order of the parameters, each flattened row by row. ``records``, the number sampled, is
    secret as well; divide by the public expected batch instead. So is ``skipped``, the number of records (of groups,
    where there are groups) that contributed zero because a loss or a gradient was not finite, and ``balance``, the
    number that contributed and were within the norm less that of those that exceeded it.
    """

    vector: NDArray[np.float64]
    records: int
    skipped: int = 0
    balance: int = 0


def clipped_sum(
    module: nn.Module,
    parameters: Sequence[tuple[str, Parameter]],
    losses: Losses,
    indices: NDArray[np.int64],
    clipping: Clipping,
    *,
    groups: NDArray[np.int64] | None = None,
    parallel_batches: ParallelBatches = map,
    rows: int = 0,
) -> ClippedSum:
    r"""Sum the gradients of single records, each brought to at most norm C, ``clipping.norm``.

    With ``groups``, the gradients of one group (a person) are first averaged, as the gradient of the mean of its
    losses, and the mean is clipped: :math:`g_p = \frac{1}{|p|} \sum_{i \in p} g_i` stands for :math:`g_i`.

    .. math::
        S = \sum_i c_i g_i, \qquad
        c_i = \min(1, C / \lVert g_i \rVert) \quad\text{or, normalised,}\quad
        c_i = C / (\lVert g_i \rVert + 0.01)

    ConfigError where the parameters or indices are not as stated, or the engine cannot handle a layer; PrivacyError
    where the losses are not one per record, an index occurs twice, or gradients cannot be split.

    Parameters
    ----------
    module : Module
        The model that ``losses`` runs. It is left as it was found, ``.grad`` included.
    parameters : sequence of (name, Parameter)
        What is trained; the order decides the order of the result.
    losses : callable
        Record indices [B] to losses [B]; entry ``i`` must depend on record ``i`` only. This cannot
        be verified here; the conformance audit tests it.
    indices : ndarray of int64, shape [sampled]
        The sampled records, none twice. Where it and ``rows`` are empty the model is not called.
    groups : ndarray of int64, shape [sampled], optional
        To which group each index belongs. The whole group must be there. A group stays within one
        micro-batch; a larger one is added up over several before it is clipped.
    parallel_batches : callable(function, items) -> iterable, optional
        The opacus engine and groups take micro-batches one after another.
    rows : int, optional
        The fewest records to compute with. Record 0 stands in for those that were not sampled, and
        counts as nothing, so that the work does not tell how many were.

    Guarantees
    ----------
    Adding or removing one record, or one whole group where there are groups, changes the vector by
    at most ``clipping.norm`` in 2-norm, if each loss depends on its own record only. Norms and sums
    are taken in float64 from one and the same float32 gradient, also where layers compute in half
    precision, and a relative margin of 1e-6 covers rounding. A record (a group, where there are
    groups) whose loss or gradient is NaN or infinite contributes zero: no error, and no other
    record's term, depends on it. The errors above depend on the settings and the model alone.

    References
    ----------
    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016; Bu et al., "Automatic
    Clipping", NeurIPS 2023 (arXiv 2206.07136).
    """
    _check(parameters, indices)
    totals, counts = sums_on_device(
        module, parameters, losses, indices, clipping, groups=groups, parallel_batches=parallel_batches, rows=rows
    )
    # The one transfer from the device.
    skipped, balance = counts.tolist()
    return ClippedSum(torch.cat(totals).cpu().numpy(), int(indices.size), skipped, balance)


def sums_on_device(
    module: nn.Module,
    parameters: Sequence[tuple[str, Parameter]],
    losses: Losses,
    indices: NDArray[np.int64],
    clipping: Clipping,
    *,
    groups: NDArray[np.int64] | None,
    parallel_batches: ParallelBatches,
    rows: int,
) -> tuple[list[Tensor], Tensor]:
    """Return the sums of `clipped_sum`, [entries] for each parameter, and [skipped, balance], on the device."""
    totals = _zeros(parameters)
    counts = torch.zeros(2, dtype=torch.int64, device=totals[0].device)
    left = np.full(max(0, rows - indices.size), _DUMMY)
    if indices.size + left.size == 0:
        return totals, counts
    size = clipping.micro_batch
    with _ENGINES[clipping.engine](module, parameters) as split:

        def of_records(chunk: NDArray[np.int64]) -> list[Tensor | None]:
            """Return the gradients per record, and the losses [B, 1] as one more of them."""
            with torch.enable_grad():
                values = _checked_losses(losses(np.maximum(chunk, 0)), chunk.size)
                return [*split(values), values.detach()[:, None]]

        def part(chunk: NDArray[np.int64]) -> list[Tensor]:
            sums = _zeros(parameters)
            counted = _add(sums, of_records(chunk), clipping, torch.from_numpy(chunk == _DUMMY))
            return [*sums, counted]

        if groups is not None:
            held: list[Tensor | None] | None = None
            for chunk, members, last in group_chunks(indices, groups, size):
                # The losses go along: a group is unfit if one of its losses is.
                found = means_of_groups(of_records(chunk), members)
                held = found if held is None else added(held, found)
                if last:
                    counts, held = counts + _add(totals, held, clipping), None
        else:
            left = np.concatenate([indices, left])
        chunks = [left[i : i + size] for i in range(0, left.size, size)]
        # Opacus keeps its gradients on the parameters, where two micro-batches would meet.
        several = parallel_batches if clipping.engine == "native" else map
        for *sums, counted in several(part, chunks):
            counts = counts + counted
            for total, one in zip(totals, sums, strict=True):
                total += one
    return totals, counts


def _zeros(parameters: Sequence[tuple[str, Parameter]]) -> list[Tensor]:
    # Metal has no float64: there the gradients are clipped and added on the CPU.
    return [
        torch.zeros(p.numel(), dtype=torch.float64, device="cpu" if p.device.type == "mps" else p.device)
        for _, p in parameters
    ]


@torch.no_grad()
def _add(
    totals: list[Tensor], found: list[Tensor | None], clipping: Clipping, dummies: Tensor | None = None
) -> Tensor:
    """Clip gradients, the last of them losses, and add them to the totals; return [skipped, balance]."""
    *gradients, losses = (None if g is None else g.to(totals[0].device) for g in found)
    assert losses is not None
    flat = [None if g is None else g.flatten(1) for g in gradients]
    norms = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in flat if g is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    unfit = ~(torch.isfinite(norm) & torch.isfinite(losses[:, 0]))
    bound = clipping.norm * (1.0 - _MARGIN)
    if clipping.normalise:
        factor = bound / (norm + _STABILITY)
    else:
        factor = (bound / norm.clamp_min(torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    dropped = unfit if dummies is None else unfit | dummies.to(unfit.device)
    factor = factor.masked_fill(dropped, 0.0)
    for total, g in zip(totals, flat, strict=True):
        if g is not None:
            # Zero times NaN is NaN, so the rows go as well as the factors.
            total += factor @ g.to(torch.float64, copy=True).masked_fill_(dropped[:, None], 0.0)
    skipped = unfit if dummies is None else unfit & ~dummies.to(unfit.device)
    balance = torch.where(norm <= bound, 1, -1).masked_fill(dropped, 0)
    return torch.stack([skipped.sum(), balance.sum()])


def _checked_losses(values: Tensor, records: int) -> Tensor:
    if values.shape != (records,):
        raise PrivacyError(
            f"the losses have shape {tuple(values.shape)} for {records} records; return one loss "
            "per record, never a mean over the batch"
        )
    if not values.requires_grad:
        raise PrivacyError(
            "the losses do not depend on any trainable parameter; check that adapters are "
            "attached, trainable, and not cut off by a layer without gradients"
        )
    return values


def _check(parameters: Sequence[tuple[str, Parameter]], indices: NDArray[np.int64]) -> None:
    if not parameters:
        raise ConfigError("there are no parameters to train; attach an adapter first")
    if len({id(parameter) for _, parameter in parameters}) != len(parameters):
        raise ConfigError("a parameter is listed twice; list each one once")
    frozen = [name for name, parameter in parameters if not parameter.requires_grad]
    if frozen:
        raise ConfigError(f"{frozen} are frozen; list only what is trained")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ConfigError(f"indices must be a row of whole numbers, found {indices.dtype} {indices.shape}")
    if np.unique(indices).size != indices.size:
        raise PrivacyError("a record was sampled twice; it would count double in the sum")
