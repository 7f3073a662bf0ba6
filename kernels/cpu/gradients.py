"""CPU: what gradients written by hand have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def refuse_second_order() -> None:
    """Raise RuntimeError where gradients of gradients are asked for (`create_graph=True`)."""
    if torch.is_grad_enabled():
        raise RuntimeError("the CPU path has no second-order gradients; build the model with REFERENCE")


def through(gradient: Tensor, slope: Tensor | None) -> Tensor:
    """A gradient, multiplied in place by a slope."""
    return gradient if slope is None else gradient.mul_(slope)


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) shaped to multiply tensors (B, ...)."""
    return value.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def dtypes_of(*tensors: Tensor | None) -> tuple[torch.dtype | None, ...]:
    """Types of tensors; None for None."""
    return tuple(None if tensor is None else tensor.dtype for tensor in tensors)


def typed(gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> Iterator[Tensor | None]:
    """Gradients in the types of what they belong to."""
    pairs = zip(gradients, dtypes, strict=True)
    return (None if one is None or dtype is None else one.to(dtype) for one, dtype in pairs)
