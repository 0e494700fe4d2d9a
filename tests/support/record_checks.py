"""Trials that break the promise of clipping where a model mixes the records of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import Parameter

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.clipping.clipped_sum import Clipping, Engine, Losses, clipped_sum


def check_independent(losses: Losses, indices: NDArray[np.int64], *, tolerance: float = 1e-4, probes: int = 8) -> None:
    """Test whether the loss of a record changes when another is left out or replaced.

    It finds losses averaged over the tokens of a batch, batch normalisation, contrastive losses
    and the like, if the records differ enough (in length, for a token mean). Passing is no proof.

    Parameters
    ----------
    losses : callable
        As for ``clipped_sum``, without dropout.
    indices : ndarray of int64, shape [B]
        At least two records, best of different lengths.
    tolerance : float
        Change allowed, relative to the loss and the mean of all losses.
    probes : int
        How many records are left out or replaced in turn.

    Raises
    ------
    PrivacyError
        A loss depends on another record, so clipping would not bound what that record changes.
    """
    if indices.size < 2:
        raise ConfigError("independence needs at least two records to be tried; give more")
    full = _values(losses, indices)
    scale = float(np.mean(np.abs(full)))
    places = np.unique(np.linspace(0, indices.size - 1, min(probes, indices.size)).astype(int))
    for place in places:
        others = np.delete(np.arange(indices.size), place)
        exchanged = indices.copy()
        exchanged[place] = indices[(place + 1) % indices.size]
        for trial in (_values(losses, indices[others]), _values(losses, exchanged)[others]):
            allowed = tolerance * (np.abs(full[others]) + scale)
            if bool(np.any(np.abs(trial - full[others]) > allowed)):
                raise PrivacyError(
                    "the loss of one record depends on another record of the batch, so clipping "
                    "bounds nothing; average over the tokens of each record alone, and use no "
                    "layer that mixes records"
                )


def check_additive(
    module: nn.Module,
    parameters: Sequence[tuple[str, Parameter]],
    losses: Losses,
    indices: NDArray[np.int64],
    *,
    clipping_norm: float,
    engine: Engine = "native",
    tolerance: float = 1e-3,
) -> None:
    r"""Test whether a batch gives the sum of what its records give alone.

    .. math::
        S(D) = \sum_{x \in D} S(\{x\})

    It finds what ``check_independent`` finds and also gradients split along a wrong axis. The
    parameters are those of ``clipped_sum``, without dropout and with at least two records;
    ``tolerance`` is the largest 2-norm of the difference, in clipping norms.

    Raises
    ------
    PrivacyError
        The sums differ, so one record can change the sum by more than the clipping norm.
    """
    if indices.size < 2:
        raise ConfigError("the sum needs at least two records to be tried; give more")

    def total(chosen: NDArray[np.int64], micro_batch: int) -> NDArray[np.float64]:
        clipping = Clipping(clipping_norm, True, engine, micro_batch)
        return clipped_sum(module, parameters, losses, chosen, clipping).vector

    gap = float(np.linalg.norm(total(indices, indices.size) - total(indices, 1)))
    if gap > tolerance * clipping_norm:
        raise PrivacyError(
            f"a batch differs from the sum of its records by {gap / clipping_norm:.3g} clipping "
            "norms; some layer or loss mixes records, or the first axis is not the record"
        )


@torch.no_grad()
def _values(losses: Losses, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    values = losses(indices)
    if values.shape != (indices.size,):
        raise PrivacyError(
            f"the losses have shape {tuple(values.shape)} for {indices.size} records; return one "
            "loss per record, never a mean over the batch"
        )
    return values.double().cpu().numpy()
