"""REFERENCE: batch norm and swish."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from kernels.ops import Activation


def check_norm(x: Tensor, channels: Iterable[Tensor], training: bool, repeats: int, activation: str) -> None:
    """Raise ValueError unless the arguments of `norm_swish` fit together; `channels` are its tensors (C,)."""
    if x.ndim != 4:
        raise ValueError(f"x: expected (B, C, h, w), got {tuple(x.shape)}")
    for tensor in channels:
        if tuple(tensor.shape) != (x.shape[1],):
            raise ValueError(f"expected statistics, weight and bias ({x.shape[1]},), got {tuple(tensor.shape)}")
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"x: expected more than one value per channel in training, got {tuple(x.shape)}")
    if repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, got {repeats}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: expected one of {get_args(Activation)}, got '{activation}'")


def norm_swish(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    repeats: int = 1,
    activation: Activation = "swish",
) -> Tensor:
    """Batch norm, then swish; see `kernels.ops.NormSwish`. Each of the two rounds to the type of x.

    Repeated pixels change neither mean nor biased variance; the unbiased variance of n values, r times each, is that of
    the n values times r (n - 1) / (r n - 1).
    """
    check_norm(x, (running_mean, running_var, weight, bias), training, repeats, activation)
    corrected = training and repeats > 1 and x.numel() > 0
    moved = running_var.clone() if corrected else running_var
    y = F.batch_norm(x, running_mean, moved, weight, bias, training, momentum, eps)
    if corrected:
        count, kept = x.numel() // x.shape[1], (1 - momentum) * running_var
        running_var.copy_(kept + (moved - kept) * (repeats * (count - 1) / (repeats * count - 1)))
    return F.silu(y) if activation == "swish" else y
