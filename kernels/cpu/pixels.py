"""CPU: what a vanilla VAE spends on its pixels, in C where there is a compiler, else in plain PyTorch.

Binary draws, the Bernoulli log probability with its gradient in one pass, and linear layers over images that are mostly
zero: digits are lit on one pixel in eight, so that only one row of the weights in eight is read.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.reference import pixels as reference

MOST_LIT = 0.25
"""Share of pixels that are not zero up to which adding single rows beats a matrix product."""
LOOKED_AT = 8
"""Images by which that share is judged."""


@functools.cache
def declared() -> ctypes.CDLL | None:
    """The C kernels with the types of what they take, or None where they cannot be built."""
    lib, pointer, integer, threads = library.library(), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    if lib is None:
        return None
    lib.vaebench_bernoulli.argtypes = (*(pointer,) * 4, integer, integer, threads)
    lib.vaebench_bernoulli.restype = ctypes.c_int32
    lib.vaebench_lit_rows.argtypes = (*(pointer,) * 4, *(integer,) * 3, threads)
    lib.vaebench_lit_rows.restype = None
    lib.vaebench_lit_rows_backward.argtypes = (*(pointer,) * 3, *(integer,) * 3, threads)
    lib.vaebench_lit_rows_backward.restype = None
    lib.vaebench_below.argtypes = (ctypes.c_uint32, pointer, pointer, integer)
    lib.vaebench_below.restype = None
    return lib


def _threads(values: int) -> int:
    """Threads that work on so many values."""
    return max(1, min(torch.get_num_threads(), values // library.SMALLEST_SHARE))


def runs_in_c(*tensors: Tensor) -> bool:
    """Whether the C kernels are there and take these tensors: float32 on the CPU, not under autocast or compilation."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    taken = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return taken and declared() is not None


def _library() -> ctypes.CDLL:
    lib = declared()
    assert lib is not None
    return lib


def uniform_below(p: Tensor, seed: int) -> Tensor:
    """1 where a uniform draw lies below p, else 0, in the type of p; `seed` draws as in `torch.rand`."""
    if runs_in_c(p):
        p, out = p.contiguous(), torch.empty(p.shape)
        _library().vaebench_below(seed & 0xFFFFFFFF, p.data_ptr(), out.data_ptr(), p.numel())
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
        if not _library().vaebench_bernoulli(*pointers, images, size, _threads(logits.numel())):
            raise ValueError(reference.NOT_BINARY)
        ctx.save_for_backward(gradient)
        return log_prob

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the logits."""
        library.refuse_second_order()
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.view(-1, *(1,) * (gradient.ndim - 1)), None


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log p(x) per image (B,); see `kernels.ops.BernoulliLogProb`."""
    if logits.shape == x.shape and runs_in_c(logits, x):
        return Bernoulli.apply(logits, x)  # pyright: ignore[reportReturnType]
    return reference.bernoulli_log_prob(logits, x)


class LitLinear(torch.autograd.Function):
    """x W + b by adding the rows of W whose pixels are lit: (B, N), (N, M), (M,) -> (B, M)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """The product."""
        x, rows, out = x.contiguous(), rows.contiguous(), torch.empty(len(x), rows.shape[1])
        pointers = (tensor.data_ptr() for tensor in (x, rows, bias, out))
        _library().vaebench_lit_rows(*pointers, *x.shape, rows.shape[1], _threads(x.numel()))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of rows and bias; images have none."""
        library.refuse_second_order()
        (x,), upstream = ctx.saved_tensors, upstream.contiguous()
        gradient = torch.empty(x.shape[1], upstream.shape[1])
        pointers = (tensor.data_ptr() for tensor in (x, upstream, gradient))
        _library().vaebench_lit_rows_backward(*pointers, *x.shape, upstream.shape[1], _threads(x.numel()))
        return None, gradient, upstream.sum(0)


def image_linear(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """A linear layer over images; see `kernels.ops.ImageLinear`. Mostly lit images take a matrix product."""
    if x.requires_grad or not runs_in_c(x, rows, bias) or not _mostly_dark(x[:LOOKED_AT]):
        return reference.image_linear(x, rows, bias)
    return LitLinear.apply(x, rows, bias)  # pyright: ignore[reportReturnType]


def _mostly_dark(x: Tensor) -> bool:
    return int(x.count_nonzero()) <= MOST_LIT * x.numel()
