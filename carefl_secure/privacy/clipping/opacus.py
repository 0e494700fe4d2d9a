"""Gradients per record by the hooks of Opacus, a second engine to check the first against."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from carefl_secure.errors import ConfigError, PrivacyError

_LEFT_ON_PARAMETERS = ("grad_sample", "_current_grad_sample", "_forward_counter", "_norm_sample")
_LEFT_ON_LAYERS = ("activations", "max_batch_len")
# Opacus splits in the precision of the layer; half precision is off by some 0.2 %.
_SUM_TOLERANCE = 1e-2


@contextmanager
def opacus_gradients(
    module: nn.Module, parameters: Sequence[tuple[str, Parameter]]
) -> Iterator[Callable[[Tensor], list[Tensor | None]]]:
    """Within the context, split gradients by record with the hooks of Opacus.

    Yields losses [B] to gradients [B, ...] in the order of ``parameters``; every other trainable
    parameter is frozen meanwhile. It supports more kinds of layers than the native engine, is some
    10 % slower, and refuses non-reentrant gradient checkpointing rather than miss a gradient.

    ConfigError where Opacus is missing, or the module is in evaluation mode, where the hooks stay silent; PrivacyError
    where Opacus refuses the module, or its gradients are not one per record.
    """
    try:
        from opacus.grad_sample import GradSampleHooks
    except ImportError as error:
        raise ConfigError("the opacus engine needs opacus 1.6 or newer; install it or choose engine native") from error
    if not module.training:
        raise ConfigError("the opacus engine needs the module in training mode: call .train()")
    wanted = {id(parameter) for _, parameter in parameters}
    trainable = [p for p in module.parameters() if p.requires_grad]
    others = [p for p in trainable if id(p) not in wanted]
    before = [p.grad for p in trainable]
    for parameter in trainable:
        parameter.grad = None
    for parameter in others:
        parameter.requires_grad_(False)
    hooks = None
    try:
        try:
            hooks = GradSampleHooks(module, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise PrivacyError(f"Opacus cannot split this module by record: {error}") from error

        def gradients(losses: Tensor) -> list[Tensor | None]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                losses.sum().backward()  # type: ignore[no-untyped-call]
            return [_take(name, p, losses.shape[0]) for name, p in parameters]

        yield gradients
    finally:
        if hooks is not None:
            hooks.remove_hooks()
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter, gradient in zip(trainable, before, strict=True):
            parameter.grad = gradient
        _tidy(module)


def _take(name: str, parameter: Parameter, records: int) -> Tensor:
    """Take the gradients per record off a parameter, and check them against their sum."""
    found = getattr(parameter, "grad_sample", None)
    total = parameter.grad
    parameter.grad = None
    if not isinstance(found, Tensor) or found.shape[0] != records or total is None:
        raise PrivacyError(
            f"Opacus found no single gradient per record for {name!r}; gradient checkpointing, "
            "image tiles, or losses that do not reach it are usual causes: use engine native"
        )
    parameter.grad_sample = None  # type: ignore[attr-defined]
    gradients = found.detach().float()
    gap = torch.linalg.vector_norm(gradients.sum(0) - total.float())
    size = torch.linalg.vector_norm(gradients.flatten(1), dim=1).sum()
    if gap > _SUM_TOLERANCE * size:
        raise PrivacyError(
            f"the gradients per record of {name!r} do not add up to its gradient, so part of it "
            "would escape the clipping; adapt only layers that Opacus knows"
        )
    return gradients


def _tidy(module: nn.Module) -> None:
    """Remove what Opacus leaves on parameters and layers."""
    for parameter in module.parameters():
        for name in _LEFT_ON_PARAMETERS:
            parameter.__dict__.pop(name, None)
    for layer in module.modules():
        for name in _LEFT_ON_LAYERS:
            layer.__dict__.pop(name, None)
