"""The trials of tests/support/record_checks.py find models that mix records, and pass those that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from tests.support.record_checks import check_additive, check_independent

ALL = np.arange(6)
LENGTHS = torch.tensor([2, 9, 3, 5, 9, 4])


class Language:
    """Records of unequal length with a loss at every token, after a LoRA-like layer."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(8, 3, bias=False), nn.Linear(3, 8, bias=False))
        self.parameters = list(self.module.named_parameters())
        self.rows = torch.randn(6, 9, 8)

    def tokens(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the loss of every token and which tokens count, both [B, T]."""
        chosen = torch.from_numpy(indices)
        nll = self.module(self.rows[chosen]).square().sum(2)
        return nll, (torch.arange(9) < LENGTHS[chosen, None]).float()


def record_mean(model: Language, indices: NDArray[np.int64]) -> Tensor:
    nll, mask = model.tokens(indices)
    return (nll * mask).sum(1) / mask.sum(1)


def token_mean(model: Language, indices: NDArray[np.int64]) -> Tensor:
    """The mean over all tokens of the batch, split by record: what labels= amounts to."""
    nll, mask = model.tokens(indices)
    return (nll * mask).sum(1) / mask.sum() * len(indices)


def batch_normalised(model: Language, indices: NDArray[np.int64]) -> Tensor:
    values = record_mean(model, indices)
    return (values - values.mean()).square()


def contrastive(model: Language, indices: NDArray[np.int64]) -> Tensor:
    summary: Tensor = model.module(model.rows[torch.from_numpy(indices)]).mean(1)
    return -(summary @ summary.T).log_softmax(1).diagonal()


MIXING = [token_mean, batch_normalised, contrastive]


def test_a_loss_per_record_passes_both() -> None:
    model = Language()
    check_independent(lambda i: record_mean(model, i), ALL)
    check_additive(model.module, model.parameters, lambda i: record_mean(model, i), ALL, clipping_norm=1.0)


@pytest.mark.parametrize("mixing", MIXING)
def test_mixed_records_are_found_in_losses(mixing: Callable[..., Tensor]) -> None:
    model = Language()
    with pytest.raises(PrivacyError, match="depends on another record"):
        check_independent(lambda i: mixing(model, i), ALL)


@pytest.mark.parametrize("mixing", [batch_normalised, contrastive])
def test_mixed_records_are_found_in_sums(mixing: Callable[..., Tensor]) -> None:
    model = Language()
    with pytest.raises(PrivacyError, match="differs from the sum"):
        check_additive(model.module, model.parameters, lambda i: mixing(model, i), ALL, clipping_norm=1.0)


def test_a_wrong_axis_is_found_in_sums_though_losses_are_independent() -> None:
    """With as many tokens as records, nothing but the values tells the axes apart."""
    model = Language()
    model.rows = torch.randn(6, 6, 8)

    def losses(indices: NDArray[np.int64]) -> Tensor:
        rows = model.rows[torch.from_numpy(indices)]
        out: Tensor = model.module(rows.transpose(0, 1) if len(indices) == 6 else rows)
        out = out.transpose(0, 1) if len(indices) == 6 else out
        return out.square().sum((1, 2))

    check_independent(losses, ALL)
    with pytest.raises(PrivacyError, match="differs from the sum"):
        check_additive(model.module, model.parameters, losses, ALL, clipping_norm=1.0)


def test_a_token_mean_would_break_the_bound() -> None:
    """Why it must be refused: one long record then moves the clipped sum by far more than C."""
    model = Language()
    model.rows[1:] = model.rows[1]  # five short records that pull the same way
    tokens = torch.tensor([95.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    def losses(indices: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(indices)
        nll: Tensor = model.module(model.rows[chosen]).square().sum(2).mean(1)
        return nll * tokens[chosen] / tokens[chosen].sum()

    def total(indices: NDArray[np.int64], norm: float) -> NDArray[np.float64]:
        return clipped_sum(model.module, model.parameters, losses, indices, Clipping(norm, False)).vector

    # C is what each short record has without the long one; with it, they shrink to C / 20, so the
    # sum falls from 5 C to C / 4 and the long record can make up for C of that at most
    norm = float(np.linalg.norm(total(ALL[1:], 1e9))) / 5
    assert np.linalg.norm(total(ALL, norm) - total(ALL[1:], norm)) >= 3.74 * norm
    with pytest.raises(PrivacyError):
        check_independent(losses, ALL)


def test_wrong_shapes_are_refused() -> None:
    model = Language()
    with pytest.raises(PrivacyError, match="shape"):
        check_independent(lambda i: record_mean(model, i).mean(), ALL)


def test_one_record_alone_proves_nothing() -> None:
    model = Language()
    with pytest.raises(ConfigError):
        check_independent(lambda i: record_mean(model, i), ALL[:1])
    with pytest.raises(ConfigError):
        check_additive(model.module, model.parameters, lambda i: record_mean(model, i), ALL[:1], clipping_norm=1.0)
