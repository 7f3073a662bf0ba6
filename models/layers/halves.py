"""A map as two halves whose gradients, where they lie side by side in memory, are one map again without a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second half of the channels of x (B, 2 C, ...), as views."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not x.requires_grad:
        first, second = x.chunk(2, dim=1)
        return first, second
    return _Halves.apply(x)  # pyright: ignore[reportReturnType]


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Two halves (B, C, ...) as one map (B, 2 C, ...): as they lie if they lie side by side, else a copy."""
    step = first.shape[1] * first.stride(1)
    beside = first.stride() == second.stride() and second.storage_offset() == first.storage_offset() + step
    if not beside or first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return torch.cat((first, second), dim=1)
    shape = (first.shape[0], 2 * first.shape[1], *first.shape[2:])
    return first.as_strided(shape, first.stride())


class _Halves(torch.autograd.Function):
    """Views, which must not be written to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return first, second

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.cat(gradients, dim=1) if torch.is_grad_enabled() else joined(*gradients)
