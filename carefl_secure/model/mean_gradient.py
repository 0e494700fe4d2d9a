"""Ordinary gradients, for steps whose protection does not rest on clipping single records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from carefl_secure.errors import ConfigError


def mean_gradient(
    parameters: Sequence[tuple[str, Parameter]],
    losses: Callable[[NDArray[np.int64]], Tensor],
    indices: NDArray[np.int64],
    micro_batch: int = 32,
) -> NDArray[np.float64]:
    r"""Return :math:`\frac{1}{B} \sum_i \nabla \ell_i`, the gradient of the mean loss, float64 [D].

    Nothing is clipped here, so this gradient may give away single records. It must stay inside the
    client, and what is made of it must be bounded before it leaves. Where a loss is NaN or
    infinite, so is the whole gradient, as NaN.

    The order of ``parameters`` is that of the result. ``losses`` maps at least one record index [B]
    to losses [B]; ``micro_batch`` records go through the model at once.
    """
    if not (indices.size and len(parameters) and micro_batch > 0):
        raise ConfigError("a gradient needs records, trainable weights and a micro-batch above 0")
    weights = [parameter for _, parameter in parameters]
    total, loss = np.zeros(sum(weight.numel() for weight in weights)), 0.0
    for start in range(0, indices.size, micro_batch):
        with torch.enable_grad():
            values = losses(indices[start : start + micro_batch])
            # A weight that the losses do not reach has a gradient of zero.
            found = torch.autograd.grad(values.sum(), weights, materialize_grads=True)
        loss += float(values.detach().sum())
        total += torch.cat([part.flatten().double() for part in found]).cpu().numpy()
    return total / indices.size if math.isfinite(loss) else np.full_like(total, np.nan)
