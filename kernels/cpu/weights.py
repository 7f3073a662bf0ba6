"""CPU: weight normalisation and spectral norms of all convolutions of a model at once, in C (`weights.c`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import Weight, pointer
from kernels.reference import network as reference


def _described(weights: Sequence[Tensor], *columns: Sequence[Tensor | None]) -> Any:
    """The weights and, for each, what else the structure holds; None is a null pointer."""
    rows = zip(weights, *columns, strict=True)
    entries = (
        Weight(*(pointer(one) for one in row), len(row[0]), row[0].numel() // max(1, len(row[0]))) for row in rows
    )
    return (Weight * len(weights))(*entries)


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


class _WeightNorm(torch.autograd.Function):
    """Weights of norm exp(log_norm) from n weights followed by their n log norms."""

    @staticmethod
    def forward(ctx: Any, floor: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        weights, log_norms = [one.contiguous() for one in tensors[:count]], tensors[count:]
        out, norms, none = _like(weights), _like(log_norms), [None] * count
        described = _described(weights, log_norms, none, out, norms, none)
        library.loaded().vaebench_weight_norm(described, count, floor, torch.get_num_threads())
        ctx.save_for_backward(*weights, *log_norms, *norms)
        ctx.floor = floor
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        count = len(gradients)
        weights, log_norms, norms = (ctx.saved_tensors[at : at + count] for at in range(0, 3 * count, count))
        upstream = [gradient.contiguous() for gradient in gradients]
        out, d_log_norms = _like(weights), _like(log_norms)
        described = _described(weights, log_norms, upstream, out, norms, d_log_norms)
        library.loaded().vaebench_weight_norm_backward(described, count, ctx.floor, torch.get_num_threads())
        return None, *out, *d_log_norms


class _SpectralNorms(torch.autograd.Function):
    """Sum of u^T W v over n weights followed by their n left vectors, which a power iteration moves first."""

    @staticmethod
    def forward(ctx: Any, rounds: int, floor: float, *tensors: Tensor) -> Tensor:
        count = len(tensors) // 2
        weights, left = [one.contiguous() for one in tensors[:count]], tensors[count:]
        right = [weight.new_empty(weight[0].numel()) for weight in weights]
        sigmas, none = torch.empty(count), [None] * count
        described = _described(weights, none, none, right, left, sigmas.split(1))
        library.loaded().vaebench_spectral_norms(described, count, rounds, floor, torch.get_num_threads())
        ctx.save_for_backward(*(one.clone() for one in left), *right)
        ctx.shapes = [weight.shape for weight in weights]
        return sigmas.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_order()
        count = len(ctx.shapes)
        left, right = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        pairs = zip(left, right, ctx.shapes, strict=True)
        return None, None, *(torch.outer(u * gradient, v).view(shape) for u, v, shape in pairs), *[None] * count


def weight_norm(weights: Sequence[Tensor], log_norms: Sequence[Tensor], floor: float) -> tuple[Tensor, ...]:
    """The weights (O, ...), each output's scaled to norm exp(log_norm); see `kernels.ops.WeightNorm`."""
    if not weights or not library.takes(*weights, *log_norms, autocast=True):
        return reference.weight_norm(weights, log_norms, floor)
    return _WeightNorm.apply(floor, *weights, *log_norms)  # pyright: ignore[reportReturnType]


def spectral_norms(weights: Sequence[Tensor], left: Sequence[Tensor], rounds: int, floor: float) -> Tensor:
    """Sum of the top singular values of weights read as (O, rest); see `kernels.ops.SpectralNorms`."""
    if not weights or not library.takes(*weights, *left, autocast=True):
        return reference.spectral_norms(weights, left, rounds, floor)
    return _SpectralNorms.apply(rounds, floor, *weights, *left)  # pyright: ignore[reportReturnType]
