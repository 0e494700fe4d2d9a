from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carefl_secure.errors import ConfigError
from carefl_secure.model.label_scorer import mean_gradient


def test_the_gradient_of_the_mean_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    layer, unused, rows = nn.Linear(4, 3), nn.Linear(2, 2), torch.randn(9, 4)
    parameters = [*layer.named_parameters(), *unused.named_parameters()]

    def losses(indices: NDArray[np.int64]) -> Tensor:
        out: Tensor = layer(rows[torch.from_numpy(indices)])
        return out.square().sum(1)

    chosen = np.array([0, 2, 3, 7, 8])
    for micro_batch in (1, 2, 5, 50):
        found = mean_gradient(parameters, losses, chosen, micro_batch)
        want = torch.autograd.grad(losses(chosen).mean(), list(layer.parameters()))
        flat = torch.cat([g.flatten() for g in want]).double().numpy()
        np.testing.assert_allclose(found[: flat.size], flat, rtol=1e-5)
        assert not found[flat.size :].any()
    assert all(p.grad is None for _, p in parameters)
    rows[3] = float("nan")
    assert np.isnan(mean_gradient(parameters, losses, chosen)).all()
    with pytest.raises(ConfigError):
        mean_gradient(parameters, losses, np.zeros(0, np.int64))
