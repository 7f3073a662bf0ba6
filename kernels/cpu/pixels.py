"""CPU: what a vanilla VAE spends on its pixels, in C where there is a compiler, else in plain PyTorch.

Binary draws, the Bernoulli log probability with its gradient in one pass, and linear layers over images that are mostly
zero: digits are lit on one pixel in eight, so that only one row of the weights in eight is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.gradients import refuse_second_order
from kernels.reference import pixels as reference

MOST_LIT = 0.25
"""Share of pixels that are not zero up to which adding single rows beats a matrix product."""
LOOKED_AT = 8
"""Images by which that share is judged."""


def _runs_in_c(*tensors: Tensor) -> bool:
    """Whether the C kernels take these tensors; not while `torch.compile` traces, which cannot look into them."""
    return not torch.compiler.is_compiling() and library.takes(*tensors)


def uniform_below(p: Tensor, seed: int) -> Tensor:
    """1 where a uniform draw lies below p, else 0, in the type of p; `seed` draws as in `torch.rand`."""
    if _runs_in_c(p):
        p, out = p.contiguous(), torch.empty(p.shape)
        library.loaded().vaebench_below(seed & 0xFFFFFFFF, p.data_ptr(), out.data_ptr(), p.numel())
        return out
    generator = torch.Generator(p.device).manual_seed(seed)
    return torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device).lt_(p)


class Bernoulli(torch.autograd.Function):
    """Log p(x) of independent Bernoulli pixels through the C kernel, with its gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        """Value (B,); the gradient for unit upstream is all that is kept."""
        logits, x = logits.contiguous(), x.contiguous()
        log_prob, gradient = torch.empty(len(logits)), torch.empty(logits.shape)
        images, size = len(logits), logits.numel() // max(1, len(logits))
        pointers = (tensor.data_ptr() for tensor in (logits, x, log_prob, gradient))
        if not library.loaded().vaebench_bernoulli(*pointers, images, size, library.threads_for(logits.numel())):
            raise ValueError(reference.NOT_BINARY)
        ctx.save_for_backward(gradient)
        return log_prob

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the logits."""
        refuse_second_order()
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.view(-1, *(1,) * (gradient.ndim - 1)), None


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.BernoulliLogProb`."""
    if logits.shape == x.shape and _runs_in_c(logits, x):
        return Bernoulli.apply(logits, x)  # pyright: ignore[reportReturnType]
    return reference.bernoulli_log_prob(logits, x)


class LitLinear(torch.autograd.Function):
    """x W + b by adding the rows of W whose pixels are lit: (B, N), (N, M), (M,) -> (B, M)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """The product."""
        x, rows, out = x.contiguous(), rows.contiguous(), torch.empty(len(x), rows.shape[1])
        pointers = (tensor.data_ptr() for tensor in (x, rows, bias, out))
        library.loaded().vaebench_lit_rows(*pointers, *x.shape, rows.shape[1], library.threads_for(x.numel()))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of rows and bias; images have none."""
        refuse_second_order()
        (x,), upstream = ctx.saved_tensors, upstream.contiguous()
        gradient = torch.empty(x.shape[1], upstream.shape[1])
        pointers = (tensor.data_ptr() for tensor in (x, upstream, gradient))
        library.loaded().vaebench_lit_rows_backward(
            *pointers, *x.shape, upstream.shape[1], library.threads_for(x.numel())
        )
        return None, gradient, upstream.sum(0)


def image_linear(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """A linear layer over images; see `kernels.ops.ImageLinear`. Mostly lit images take a matrix product."""
    if x.requires_grad or not _runs_in_c(x, rows, bias) or not _mostly_dark(x[:LOOKED_AT]):
        return reference.image_linear(x, rows, bias)
    return LitLinear.apply(x, rows, bias)  # pyright: ignore[reportReturnType]


def _mostly_dark(x: Tensor) -> bool:
    return int(x.count_nonzero()) <= MOST_LIT * x.numel()
