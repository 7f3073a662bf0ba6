"""Batch norms over the images of several processes (torch.distributed), in place of those of one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from kernels.cell_form import CellForm, CellTensors
from kernels.ops import Activation, NormSwish, Ops
from kernels.reference.network import Parts, residual_cell
from kernels.reference.norm import check_norm

IMAGES_AND_PIXELS = (0, 2, 3)
BYTES_FORWARD, BYTES_BACKWARD = 3 * torch.float64.itemsize, 2 * torch.float64.itemsize
"""That a process gives to all-reduce for a channel of a norm."""


def synchronised(ops: Ops, shared: NormSwish | None = None) -> Ops:
    """The operations, whose batch norms take in training their statistics from the images of all processes.

    All processes of the default group call them alike; `shared` stands for `norm_swish` below. Cells with norms run
    layer by layer in training; in evaluation, where nothing is exchanged, and without norms everything is that of
    `ops`.
    """
    of_all = shared or norm_swish

    def norm(x: Tensor, *statistics: Tensor, training: bool, **settings: Any) -> Tensor:
        operation = of_all if training else ops.norm_swish
        return operation(x, *statistics, training=training, **settings)

    def cell(x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, *, training: bool) -> Tensor:
        if training and any(tensors.norms):
            return residual_cell(x, skip, form, tensors, training=True, parts=Parts(of_all))
        return ops.network.residual_cell(x, skip, form, tensors, training=training)

    network = dataclasses.replace(ops.network, residual_cell=cell)
    return dataclasses.replace(ops, norm_swish=norm, network=network)


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
    """Batch norm of all processes' values, then swish; see `kernels.ops.NormSwish`.

    Raises:
        ValueError: the arguments do not fit together; one value a channel in a process that is alone.
    """
    check_norm(x, (running_mean, running_var, weight, bias), dist.get_world_size() == 1, repeats, activation)
    if not training:
        raise ValueError("expected a norm in training: in evaluation there is nothing to synchronise")
    count, mean, variance = _shared_statistics(x.detach())
    y = _Normalised.apply(x, weight, bias, mean.to(weight.dtype), variance.to(weight.dtype), count, eps)
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (repeats * count / (repeats * count - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return F.silu(y) if activation == "swish" else y


def _shared_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of values (C), mean (C) and biased variance (C) of the channels in float64, over all processes.

    Each process's own are joined: float64 sums of its values and of their squares, which say as much of float32 ones as
    joining mean by mean does (Chan et al. 1979), and are as long for any number of processes. Nothing waits for a
    device.
    """
    own = x if x.dtype == torch.float64 else x.float()
    variance, mean = (one.double() for one in torch.var_mean(own, IMAGES_AND_PIXELS, correction=0))
    values = torch.full_like(mean, x.numel() // x.shape[1])
    sums = torch.stack([values, values * mean, values * (variance + mean.square())])
    dist.all_reduce(sums)
    count = sums[0]
    joined = sums[1] / count
    return count, joined, (sums[2] / count - joined.square()).clamp(min=0)


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, whose gradient minds that mean and variance came from x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """As with constants, less what a shift and a scale of all values would change (Ioffe & Szegedy 2015)."""
        x, weight, mean, variance, count = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        wide = gradients[0].to(weight.dtype)
        centred = x.to(weight.dtype) - _by_channel(mean)
        of_bias = wide.sum(IMAGES_AND_PIXELS)
        of_weight = (wide * centred).sum(IMAGES_AND_PIXELS) * inverse
        sums = torch.stack([of_bias, of_weight]).double()
        dist.all_reduce(sums)
        shift, scale = (sums / count).to(weight.dtype)
        of_x = (wide - _by_channel(shift) - centred * _by_channel(scale * inverse)) * _by_channel(weight * inverse)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None


def _by_channel(values: Tensor) -> Tensor:
    """(C) -> (1, C, 1, 1)."""
    return values[None, :, None, None]
