"""Slots filled with values as a training meets them, from keyed noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import keyed_generator
from benchmarks.speed.operations.traced import Operation, Slot, mapped

LIT = 1 / 8
"""Share of an image's pixels that are not zero where a linear layer or a Bernoulli reads it, as in digits."""
LEVELS = 256
SPREAD = 0.5
"""Of raw means, log scales and logits."""
LIKELIHOODS = ("bernoulli_log_prob", "image_linear")


def filled(operation: Operation) -> dict[str, Any]:
    """The arguments of the operation, always with the same values; differentiable tensors are leaves."""
    generator = keyed_generator(0, "operations")

    def leaf(name: str, value: Any) -> Any:
        if not isinstance(value, Slot):
            return value
        return _laid_out(_values(operation, name, value, generator), value)

    return {name: mapped(value, leaf, name) for name, value in operation.arguments}


def _values(operation: Operation, name: str, slot: Slot, generator: torch.Generator) -> Tensor:
    """Values of a tensor, contiguous."""
    if not slot.dtype.is_floating_point:
        return torch.zeros(slot.shape, dtype=slot.dtype)
    uniform = torch.rand(slot.shape, generator=generator)
    if name == "x" and operation.name in LIKELIHOODS:
        return (uniform < LIT).float()
    if name == "x" and operation.name == "logistic_mixture_log_prob":
        return (uniform * LEVELS).floor() / (LEVELS - 1)
    if name == "running_var" or (name == "weight" and len(slot.shape) == 1):
        return uniform + 0.5
    normal = torch.randn(slot.shape, generator=generator)
    if name in ("weight", "weights") and len(slot.shape) > 1:
        return normal / math.sqrt(math.prod(slot.shape[1:]))
    return normal * SPREAD


def _laid_out(values: Tensor, slot: Slot) -> Tensor:
    """The values in the slot's type and strides."""
    own = tuple(1 if stride == 0 else size for size, stride in zip(slot.shape, slot.stride, strict=True))
    base = torch.empty_strided(own, slot.stride, dtype=slot.dtype)
    base.copy_(values[tuple(slice(size) for size in own)])
    return base.expand(slot.shape).requires_grad_(slot.differentiable)


def tensors_of(arguments: Any) -> list[Tensor]:
    """All tensors among the arguments."""
    found: list[Tensor] = []
    for value in arguments.values():
        mapped(value, lambda _, one: found.append(one) if isinstance(one, Tensor) else None)
    return found
