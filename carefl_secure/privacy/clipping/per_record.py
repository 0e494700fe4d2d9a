"""Gradients per record of trainable linear layers, from one ordinary backward pass, and their means over groups."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn import functional as F

from carefl_secure.errors import ConfigError, PrivacyError

_Sink = Callable[[Tensor, Tensor], None]


class _RecordLinear(torch.autograd.Function):
    """``rows @ weight.T``; backward hands (rows, output gradient) to the sink, not the weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, sink: _Sink) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.sink = sink
        return F.linear(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        ctx.sink(rows, gradient)
        upstream = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        return upstream, None, None


class _Found:
    """The gradients of one micro-batch, by place, and its number of records."""

    def __init__(self) -> None:
        self.gradients: dict[int, Tensor] = {}
        self.records = 0


class _Collector(threading.local):
    """Holds the gradients per record of one micro-batch, for every thread its own.

    On a GPU the backward pass runs in a thread of autograd's: a sink is bound to the thread of the
    forward pass, which is the one that asks for the gradients.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        self._parameters = parameters
        self._weights = [parameter for _, parameter in parameters]
        self._found = _Found()

    def sink(self, place: int) -> _Sink:
        """Make the sink of the parameter at ``place``, for the thread that calls this."""
        name, here = self._parameters[place][0], self._found

        def store(rows: Tensor, gradient: Tensor) -> None:
            if rows.shape[0] != here.records:
                raise PrivacyError(
                    f"the layer of {name!r} saw {rows.shape[0]} rows for {here.records} records, "
                    "so its gradient cannot be split by record; adapt only layers whose first "
                    "axis is the record (the text tower, not image tiles)"
                )
            found = here.gradients
            out = gradient.reshape(here.records, -1, gradient.shape[-1]).float()
            into = rows.reshape(here.records, -1, rows.shape[-1]).float()
            if out.shape[2] > into.shape[2]:  # a tall product is faster made lying down
                product = torch.bmm(into.transpose(1, 2), out).transpose(1, 2)
            else:
                product = torch.bmm(out.transpose(1, 2), into)
            found[place] = found[place] + product if place in found else product

        return store

    def __call__(self, losses: Tensor) -> list[Tensor | None]:
        """Return [B, out, in] for each parameter, None where the losses do not reach it."""
        found = self._found.gradients
        found.clear()
        self._found.records = losses.shape[0]
        plain = torch.autograd.grad(losses.sum(), self._weights, allow_unused=True)
        for (name, _), gradient in zip(self._parameters, plain, strict=True):
            if gradient is not None:
                raise PrivacyError(
                    f"the losses use {name!r} outside its linear layer, so part of its gradient "
                    "would escape the clipping; adapt only plain linear layers"
                )
        gradients = [found.get(place) for place in range(len(self._weights))]
        found.clear()
        return gradients


@contextmanager
def native_gradients(
    module: nn.Module, parameters: Sequence[tuple[str, Parameter]]
) -> Iterator[Callable[[Tensor], list[Tensor | None]]]:
    r"""Within the context, split gradients by record: losses [B] to [B, out, in] per parameter.

    For layer input :math:`x_i` [T, in] and output gradient :math:`g_i` [T, out] of record i, the
    gradient is :math:`g_i^\top x_i`, always in float32. Layers used several times, and recomputed
    ones (non-reentrant checkpointing), add up. Several threads may each split a micro-batch. The
    losses must be computed within the context.

    ConfigError where a parameter is frozen or not the weight of a bias-free ``nn.Linear`` of the module; PrivacyError
    where rows of a layer are not records, a weight is used outside its layer, or something else has already replaced
    the ``forward`` of a layer.
    """
    collector = _Collector(parameters)
    layers = _layers(module, parameters)
    try:
        for layer, place in layers:
            layer.forward = _forward(layer.weight, collector, place)  # type: ignore[method-assign, assignment]
        yield collector
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("forward", None)


def _forward(weight: Tensor, collector: _Collector, place: int) -> Callable[[Tensor], Tensor]:
    def forward(rows: Tensor) -> Tensor:
        result: Tensor = _RecordLinear.apply(rows, weight, collector.sink(place))  # type: ignore[no-untyped-call]
        return result

    return forward


def _layers(module: nn.Module, parameters: Sequence[tuple[str, Parameter]]) -> list[tuple[nn.Linear, int]]:
    """Find the layers that own the parameters, each with the place of its parameter."""
    places = {id(parameter): place for place, (_, parameter) in enumerate(parameters)}
    layers: list[tuple[nn.Linear, int]] = []
    for layer in module.modules():
        for parameter in layer._parameters.values():
            place = places.get(id(parameter))
            if place is None:
                continue
            name = parameters[place][0]
            if type(layer) is not nn.Linear or layer._parameters["bias"] is not None:
                raise ConfigError(
                    f"{name!r} belongs to {type(layer).__name__}; the native engine clips only the weights of "
                    "nn.Linear without bias: adapt other layers, or use the opacus engine"
                )
            if "forward" in layer.__dict__:
                raise PrivacyError(
                    f"something has replaced the forward of the layer of {name!r}; take it off "
                    "before a private step, as its effect on the gradient is unknown"
                )
            layers.append((layer, place))
    missing = set(places.values()) - {place for _, place in layers}
    if missing:
        names = [parameters[place][0] for place in sorted(missing)]
        raise ConfigError(f"the module holds no layer with {names}; pass parameters it owns")
    return layers


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
