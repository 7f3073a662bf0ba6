"""Where a model's numbers stop being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """What is not finite first when the step `run` is replayed: "parameter NAME" or "output of NAME"; else None.

    The replay takes no gradients, and leaves the buffers (running statistics) of `model` as they were.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    found: list[str] = []
    with torch.no_grad(), buffers_restored(model), _outputs_watched(model, found):
        run()
    return found[0] if found else None


@torch.no_grad()
def parameters_are_finite(model: nn.Module) -> bool:
    """Whether all parameters are finite, asked of the device once."""
    return bool(torch.stack([torch.isfinite(parameter).all() for parameter in model.parameters()]).all())


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient holds a value that is not finite."""
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return [name for name, grad in gradients if grad is not None and not torch.isfinite(grad).all()]


@contextmanager
def _outputs_watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Layers report to `found` when their output is not finite, in the order of computation."""

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not found and not torch.isfinite(output).all():
                found.append(f"output of {name}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Buffers have their values of before after this block."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
