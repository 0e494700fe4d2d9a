"""Clipped sums on a small module: right, bounded, and fail closed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.privacy.clipping.clipped_sum import ClippedSum, Clipping, Engine, clipped_sum

ENGINES: tuple[Engine, ...] = ("native", "opacus")
RECORDS = 24
ALL = np.arange(RECORDS)


class Adapter(nn.Module):
    """A frozen layer with a low-rank side path, as LoRA adds it."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.lora_a = nn.Linear(width, rank, bias=False)
        self.lora_b = nn.Linear(rank, width, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.base(rows) + self.lora_b(self.lora_a(rows)))


class Toy:
    """Two adapters, records of eight tokens, one squared loss per record."""

    def __init__(self, train: str = "both", scale: float = 1.0, layers: int = 2) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(*(Adapter(16, 3) for _ in range(layers)))
        self.rows = scale * torch.randn(RECORDS, 8, 16)
        self.rows[::3] *= 0.01  # some records small enough not to be clipped
        self.calls = 0
        for name, parameter in self.module.named_parameters():
            if train == "B" and "lora_a" in name:
                parameter.requires_grad_(False)
        self.parameters = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def losses(self, indices: NDArray[np.int64]) -> Tensor:
        self.calls += 1
        out: Tensor = self.module(self.rows[torch.from_numpy(indices)])
        return out.square().sum((1, 2)) * 0.1

    def sum(self, indices: NDArray[np.int64] = ALL, **settings: Any) -> ClippedSum:
        given: dict[str, Any] = {"norm": 1.0, "normalise": False, "micro_batch": 5} | settings
        return clipped_sum(self.module, self.parameters, self.losses, indices, Clipping(**given))


def reference(
    parameters: list[tuple[str, Parameter]],
    losses: Callable[[NDArray[np.int64]], Tensor],
    indices: NDArray[np.int64],
    clipping_norm: float,
    normalise: bool,
) -> NDArray[np.float64]:
    """Clip by the definition, one record at a time, with nothing but autograd."""
    weights = [parameter for _, parameter in parameters]
    total = np.zeros(sum(weight.numel() for weight in weights))
    for index in indices:
        loss = losses(np.array([index])).sum()
        parts = torch.autograd.grad(loss, weights)
        gradient = torch.cat([g.flatten() for g in parts]).double().numpy()
        norm = float(np.linalg.norm(gradient))
        if normalise:
            total += clipping_norm / (norm + 0.01) * gradient
        else:
            total += min(1.0, clipping_norm / max(norm, 1e-300)) * gradient
    return total


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("train", ["both", "B"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("clipping_norm", [0.05, 1.0, 1e6])
def test_sums_agree_with_one_record_at_a_time(
    engine: Engine, train: str, normalise: bool, clipping_norm: float
) -> None:
    toy = Toy(train)
    expected = reference(toy.parameters, toy.losses, ALL, clipping_norm, normalise)
    got = toy.sum(engine=engine, norm=clipping_norm, normalise=normalise)
    assert got.vector.dtype == np.float64
    assert got.records == RECORDS
    assert np.linalg.norm(got.vector - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("train", ["both", "B"])
def test_the_engines_agree(train: str) -> None:
    toy = Toy(train)
    native, opacus = (toy.sum(engine=engine).vector for engine in ENGINES)
    assert np.linalg.norm(native - opacus) <= 1e-5 * np.linalg.norm(native)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("micro_batch", [1, 7, RECORDS, 1000])
def test_micro_batches_do_not_change_the_sum(engine: Engine, micro_batch: int) -> None:
    toy = Toy()
    whole = toy.sum(engine=engine, micro_batch=RECORDS).vector
    parts = toy.sum(engine=engine, micro_batch=micro_batch).vector
    assert np.linalg.norm(whole - parts) <= 1e-5 * np.linalg.norm(whole)


def test_the_vector_follows_the_order_of_the_parameters() -> None:
    toy = Toy()
    forward = toy.sum().vector
    toy.parameters.reverse()
    sizes = [p.numel() for _, p in toy.parameters]
    pieces = np.split(toy.sum().vector, np.cumsum(sizes)[:-1])
    assert np.allclose(np.concatenate(pieces[::-1]), forward, rtol=1e-9, atol=1e-12)


# the bound


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1e6, 1e12, 1e30])
def test_one_record_never_exceeds_the_norm(engine: Engine, normalise: bool, factor: float) -> None:
    toy = Toy()
    gentle = toy.losses

    def harsh(indices: NDArray[np.int64]) -> Tensor:
        return gentle(indices) * factor

    for clipping_norm in (1e-3, 1.0, 50.0):
        for index in (0, 1, 2):
            vector = clipped_sum(
                toy.module, toy.parameters, harsh, np.array([index]), Clipping(clipping_norm, normalise, engine=engine)
            ).vector
            assert np.linalg.norm(vector) <= clipping_norm
            if factor >= 1e6:
                assert np.linalg.norm(vector) >= 0.99 * clipping_norm, "the bound was tried"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("normalise", [False, True])
def test_removing_one_record_moves_the_sum_by_the_norm_at_most(engine: Engine, normalise: bool) -> None:
    toy = Toy(scale=5.0)
    whole = toy.sum(engine=engine, normalise=normalise).vector
    for index in range(RECORDS):
        rest = toy.sum(np.delete(ALL, index), engine=engine, normalise=normalise).vector
        assert np.linalg.norm(whole - rest) <= 1.0 + 1e-6


def test_half_precision_keeps_the_bound() -> None:
    toy = Toy(scale=5.0)

    def half(indices: NDArray[np.int64]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return toy.losses(indices).float()

    for index in range(8):
        vector = clipped_sum(toy.module, toy.parameters, half, np.array([index]), Clipping(0.5, False)).vector
        assert 0.0 < np.linalg.norm(vector) <= 0.5


def test_a_record_without_gradient_adds_nothing() -> None:
    toy = Toy()
    toy.rows[4] = 0.0
    for adapter in toy.module:
        assert isinstance(adapter, Adapter)
        adapter.base.bias.zero_()
    for normalise in (False, True):
        vector = toy.sum(np.array([4]), normalise=normalise).vector
        assert np.array_equal(vector, np.zeros_like(vector))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_sample_gives_zeros_without_the_model(engine: Engine) -> None:
    toy = Toy()
    result = toy.sum(np.empty(0, dtype=np.int64), engine=engine)
    assert result.records == 0
    assert np.array_equal(result.vector, np.zeros(sum(p.numel() for _, p in toy.parameters)))
    assert toy.calls == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_makes_the_work_the_same_and_changes_no_sum(engine: Engine) -> None:
    """Whatever was sampled, as many records go through the model, in the same micro-batches."""
    toy = Toy()
    toy.rows[0, 0, 0] = math.nan  # the record that stands in for the others may be unfit itself
    sizes: list[int] = []

    def losses(indices: NDArray[np.int64]) -> Tensor:
        sizes.append(indices.size)
        return toy.losses(indices)

    for drawn in (ALL[:0], ALL[1:2], ALL[2:9], ALL[1:]):
        plain = toy.sum(drawn, engine=engine)
        sizes.clear()
        clipping = Clipping(1.0, False, engine=engine, micro_batch=7)
        padded = clipped_sum(toy.module, toy.parameters, losses, drawn, clipping, rows=2 * RECORDS)
        assert sizes == [min(7, 2 * RECORDS - done) for done in range(0, 2 * RECORDS, 7)]
        np.testing.assert_allclose(padded.vector, plain.vector, rtol=1e-5, atol=1e-7)
        assert (padded.records, padded.skipped) == (drawn.size, 0)


# layers that are used in unusual ways


def test_recomputed_layers_count_once() -> None:
    toy = Toy()
    plain = toy.sum().vector
    toy.rows.requires_grad_(True)

    def losses(indices: NDArray[np.int64]) -> Tensor:
        rows = toy.rows[torch.from_numpy(indices)]
        for layer in toy.module:
            rows = checkpoint(layer, rows, use_reentrant=False)
        return rows.square().sum((1, 2)) * 0.1

    got = clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, False)).vector
    assert np.linalg.norm(got - plain) <= 1e-5 * np.linalg.norm(plain)
    assert toy.rows.grad is None


def test_opacus_refuses_recomputed_layers() -> None:
    toy = Toy()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        rows = toy.rows[torch.from_numpy(indices)].requires_grad_(True)
        out: Tensor = checkpoint(toy.module, rows, use_reentrant=False)
        return out.square().sum((1, 2))

    with pytest.raises(PrivacyError):
        clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, False, engine="opacus"))


def test_a_layer_used_twice_adds_up() -> None:
    toy = Toy(layers=1)

    def losses(indices: NDArray[np.int64]) -> Tensor:
        rows = toy.rows[torch.from_numpy(indices)]
        out: Tensor = toy.module(toy.module(rows))
        return out.square().sum((1, 2))

    expected = reference(toy.parameters, losses, ALL, 0.5, False)
    for engine in ENGINES:
        got = clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(0.5, False, engine=engine)).vector
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_rows_without_a_token_axis_work() -> None:
    toy = Toy()
    toy.rows = toy.rows[:, :1]

    def losses(indices: NDArray[np.int64]) -> Tensor:
        out: Tensor = toy.module(toy.rows[torch.from_numpy(indices), 0])
        return out.square().sum(1)

    expected = reference(toy.parameters, losses, ALL, 0.5, False)
    got = clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(0.5, False)).vector
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_parameter_that_no_loss_reaches_stays_zero() -> None:
    toy = Toy()
    spare = nn.Linear(4, 2, bias=False)
    toy.module.add_module("spare", spare)
    parameters = [*toy.parameters, *spare.named_parameters("spare")]

    def losses(indices: NDArray[np.int64]) -> Tensor:
        out: Tensor = toy.module[1](toy.module[0](toy.rows[torch.from_numpy(indices)]))
        return out.square().sum((1, 2)) * 0.1

    plain = Toy().sum().vector
    got = clipped_sum(toy.module, parameters, losses, ALL, Clipping(1.0, False)).vector
    assert np.array_equal(got[-8:], np.zeros(8))
    assert np.allclose(got[:-8], plain, rtol=1e-6, atol=1e-9)


def test_when_only_b_trains_a_gets_no_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy("B")
    shapes: list[tuple[int, ...]] = []
    real = torch.bmm

    def bmm(a: Tensor, b: Tensor) -> Tensor:
        result = real(a, b)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setattr(torch, "bmm", bmm)
    toy.sum(micro_batch=RECORDS)
    assert [sorted(shape) for shape in shapes] == [[3, 16, RECORDS]] * 2


# the module is left as it was


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(engine: Engine, fails: bool) -> None:
    toy = Toy()
    other = nn.Parameter(torch.ones(3))
    toy.module.register_parameter("other", other)
    first = toy.parameters[0][1]
    first.grad = torch.full_like(first, 7.0)
    layers = list(toy.module.modules())
    before = [(set(layer.__dict__), len(layer._forward_hooks), len(layer._backward_hooks)) for layer in layers]
    weights = [p.detach().clone() for p in toy.module.parameters()]
    flags = [p.requires_grad for p in toy.module.parameters()]
    if fails:
        toy.rows[:] = math.nan
        assert not toy.sum(engine=engine).vector.any()
    else:
        toy.sum(engine=engine)
    after = [(set(layer.__dict__), len(layer._forward_hooks), len(layer._backward_hooks)) for layer in layers]
    assert after == before
    assert [p.requires_grad for p in toy.module.parameters()] == flags
    for old, new in zip(weights, toy.module.parameters(), strict=True):
        assert torch.equal(old, new)
        assert not new.__dict__
    assert first.grad is not None
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(p.grad is None for _, p in toy.parameters[1:])
    assert other.grad is None


# what is refused


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_record_with_a_bad_loss_contributes_zero(engine: Engine, value: float) -> None:
    toy = Toy()
    others = np.delete(ALL, 9)
    expected = toy.sum(others, engine=engine).vector
    toy.rows[9, 0, 0] = value
    found = toy.sum(engine=engine)
    np.testing.assert_allclose(found.vector, expected, rtol=1e-5, atol=1e-7)
    assert found.skipped == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_gradients_contribute_zero_and_are_counted(engine: Engine) -> None:
    toy = Toy()
    gentle = toy.losses

    def losses(indices: NDArray[np.int64]) -> Tensor:
        values = gentle(indices)
        # the loss is fine, its slope at zero is infinite
        return values + torch.sqrt(values - values.detach())

    found = clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, True, engine=engine))
    assert not found.vector.any() and found.records == found.skipped == ALL.size


def test_gradients_beyond_float32_contribute_zero() -> None:
    toy = Toy()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        return toy.losses(indices).double() * 1e300

    found = clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, False))
    assert not found.vector.any() and found.skipped == ALL.size


@pytest.mark.parametrize(
    "wrong",
    [
        lambda values: values.mean(),
        lambda values: values.mean().reshape(1),
        lambda values: values[:, None],
        lambda values: values[:-1],
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_that_are_not_one_per_record_are_refused(engine: Engine, wrong: Callable[[Tensor], Tensor]) -> None:
    toy = Toy()
    with pytest.raises(PrivacyError, match="one loss per record"):
        clipped_sum(
            toy.module,
            toy.parameters,
            lambda indices: wrong(toy.losses(indices)),
            ALL,
            Clipping(1.0, False, engine=engine),
        )


def test_losses_without_gradient_are_refused() -> None:
    toy = Toy()
    with pytest.raises(PrivacyError, match="do not depend"):
        clipped_sum(
            toy.module, toy.parameters, lambda indices: toy.losses(indices).detach(), ALL, Clipping(1.0, False)
        )


def test_a_record_sampled_twice_is_refused() -> None:
    with pytest.raises(PrivacyError, match="twice"):
        Toy().sum(np.array([1, 2, 1]))


@pytest.mark.parametrize("indices", [np.array([0.0, 1.0]), np.array([[0, 1]]), np.array([True])])
def test_indices_that_are_none_are_refused(indices: NDArray[Any]) -> None:
    with pytest.raises(ConfigError, match="indices"):
        Toy().sum(indices)


@pytest.mark.parametrize(
    "settings", [{"norm": 0.0}, {"norm": math.nan}, {"norm": math.inf}, {"micro_batch": 0}, {"engine": "vmap"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Toy().sum(**settings)


def test_wrong_parameter_lists_are_refused() -> None:
    toy = Toy()
    whole = toy.parameters
    frozen = [(n, p) for n, p in toy.module.named_parameters() if not p.requires_grad]
    strange = list(nn.Linear(4, 4, bias=False).named_parameters())
    for wrong in ([], [whole[0], whole[0]], frozen[:1], strange):
        toy.parameters = wrong
        with pytest.raises(ConfigError):
            toy.sum()


def test_layers_with_bias_and_other_layers_are_refused_by_the_native_engine() -> None:
    toy = Toy()
    for layer in (nn.Linear(16, 16), nn.LayerNorm(16)):
        toy.module.append(layer)
        toy.parameters = list(layer.named_parameters())[:1]
        with pytest.raises(ConfigError, match="opacus"):
            toy.sum()


def test_rows_that_are_not_records_are_refused_by_the_native_engine() -> None:
    toy = Toy()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        tiles = toy.rows[torch.from_numpy(indices)].reshape(-1, 4, 16)  # two tiles per record
        out: Tensor = toy.module(tiles)
        return out.square().sum((1, 2)).reshape(-1, 2).sum(1)

    for engine in ENGINES:
        with pytest.raises(PrivacyError, match=r"rows|tiles"):
            clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, False, engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_used_outside_its_layer_is_refused(engine: Engine) -> None:
    toy = Toy()
    weight = toy.parameters[0][1]

    def losses(indices: NDArray[np.int64]) -> Tensor:
        return toy.losses(indices) + 0.1 * weight.square().sum()

    with pytest.raises(PrivacyError, match="escape the clipping"):
        clipped_sum(toy.module, toy.parameters, losses, ALL, Clipping(1.0, False, engine=engine))


def test_a_replaced_forward_is_refused() -> None:
    toy = Toy()
    layer = toy.module.get_submodule("0.lora_a")
    layer.__dict__["forward"] = lambda rows: rows[..., :3]
    with pytest.raises(PrivacyError, match="replaced the forward"):
        toy.sum()
    assert "forward" in layer.__dict__, "and it is left there"


def test_opacus_wants_training_mode() -> None:
    toy = Toy()
    toy.module.eval()
    with pytest.raises(ConfigError, match="training mode"):
        toy.sum(engine="opacus")
    assert np.linalg.norm(toy.sum(engine="native").vector) > 0.0
