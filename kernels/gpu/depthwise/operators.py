"""Depthwise convolutions as operations on tensors: the short way of eager code, and the registered operators.

Saved for the backward pass are the input and the taps. Gradients of gradients are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.cell_form import LayerForm
from kernels.gpu import eager, registered
from kernels.gpu.depthwise import plan
from kernels.reference import network

KERNELS = (3, 5, 7)
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("vaebench::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """X (B, C, h, w) convolved with weight (C, 1, K, K), padded by K // 2."""
    return plan.convolve(x, plan.taps_of(weight))


@depthwise.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("vaebench::depthwise_backward", mutates_args=())
def depthwise_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the weight in float32; empty where they are not needed."""
    grad_x = plan.convolve(grad_y, plan.taps_of(weight), turned=True) if need_x else grad_y.new_empty(0)
    if not need_weight:
        return grad_x, x.new_empty(0, dtype=torch.float32)
    return grad_x, plan.weight_gradient(grad_y, x, weight.shape[-1])


@depthwise_backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(grad_y, memory_format=torch.channels_last) if need_x else grad_y.new_empty(0)
    return grad_x, x.new_empty(weight.shape if need_weight else (0,), dtype=torch.float32)


def save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    """Keep the inputs for the backward pass."""
    ctx.save_for_backward(*inputs)


def differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and the weight."""
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad
    grad_x, grad_weight = depthwise_backward(grad_y, x, weight, need_x, need_weight)
    return grad_x if need_x else None, grad_weight.to(weight.dtype) if need_weight else None


depthwise.register_autograd(differentiate, setup_context=save_inputs)
depthwise_backward.register_autograd(registered.refuse)


class Depthwise(torch.autograd.Function):
    """The convolution in plain eager code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve."""
        ctx.save_for_backward(x, weight)
        ctx.taps = plan.taps_of(weight)
        return plan.convolve(x, ctx.taps)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x and the weight."""
        x, weight = ctx.saved_tensors
        if not eager.direct_backward(grad_y):
            return differentiate(ctx, grad_y)
        need_x, need_weight = ctx.needs_input_grad
        grad_x = plan.convolve(grad_y, ctx.taps, turned=True) if need_x else None
        grad_weight = plan.weight_gradient(grad_y, x, weight.shape[-1]).to(weight.dtype) if need_weight else None
        return grad_x, grad_weight


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> bool:
    """Whether the kernels convolve so: depthwise, stride 1, without bias, K of `KERNELS`, types of `TYPES`."""
    depth = form.groups == x.shape[1] == weight.shape[0]
    plain = form.stride == 1 and form.dilation == 1 and form.kernel in KERNELS and bias is None
    return depth and plain and x.dtype in TYPES and weight.dtype in TYPES


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
    """As `kernels.reference.network.convolved`; depthwise layers of stride 1 by the kernels, others by PyTorch's.

    Under autocast x is cast as PyTorch casts it; the weight is read as it is.
    """
    if not fits(x, weight, bias, form):
        return network.convolved(x, weight, bias, form)
    x = network.repeat_pixels(x) if form.repeat else x
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not eager.unobserved(x, weight):
        return depthwise(x, weight)
    if eager.recorded(x, weight):
        return Depthwise.apply(x, weight)  # pyright: ignore[reportReturnType]
    return plan.convolve(x, plan.taps_of(weight))
