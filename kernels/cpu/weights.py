"""CPU: weight normalisation and spectral norms of all convolutions of a model at once, in C (`weights.c`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import Matrix, Weight
from kernels.cpu.tables import addresses, addresses_in, table
from kernels.reference import network as reference


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _sides(shapes: Sequence[torch.Size]) -> dict[str, list[int]]:
    """Rows and columns of weights (O, ...) read as (O, rest)."""
    return {"rows": [shape[0] for shape in shapes], "columns": [shape[1:].numel() for shape in shapes]}


class _WeightNorm(torch.autograd.Function):
    """Weights of norm exp(log_norm) from n weights followed by their n log norms."""

    @staticmethod
    def forward(ctx: Any, floor: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        weights, log_norms = [one.contiguous() for one in tensors[:count]], tensors[count:]
        ctx.floor, ctx.sides = floor, _sides([one.shape for one in weights])
        out, norms = _like(weights), weights[0].new_empty(sum(ctx.sides["rows"]))
        _weight_norm("weight_norm", ctx, weights, log_norms, norms, out=addresses(out))
        ctx.save_for_backward(norms, *weights, *log_norms)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        norms, *tensors = ctx.saved_tensors
        weights, log_norms = tensors[: len(gradients)], tensors[len(gradients) :]
        upstream = [gradient.contiguous() for gradient in gradients]
        out, d_log_norms = _like(weights), _like(log_norms)
        columns = {"gradient": addresses(upstream), "out": addresses(out), "d_log_norm": addresses(d_log_norms)}
        _weight_norm("weight_norm_backward", ctx, weights, log_norms, norms, **columns)
        return None, *out, *d_log_norms


def _weight_norm(
    name: str, ctx: Any, weights: Sequence[Tensor], log_norms: Sequence[Tensor], norms: Tensor, **columns: list[int]
) -> None:
    """Call one of the two kernels; `norms` are those of all rows, one weight after the other."""
    columns |= {"weight": addresses(weights), "log_norm": addresses(log_norms)}
    rows = table(Weight, norm=addresses_in(norms, ctx.sides["rows"]), **columns, **ctx.sides)
    getattr(library.loaded(), f"vaebench_{name}")(rows.ctypes.data, len(rows), ctx.floor, torch.get_num_threads())


class _SpectralNorms(torch.autograd.Function):
    """Sum of u^T W v over n weights followed by their n left vectors, which a power iteration moves first."""

    @staticmethod
    def forward(ctx: Any, rounds: int, floor: float, *tensors: Tensor) -> Tensor:
        count = len(tensors) // 2
        weights, left = [one.contiguous() for one in tensors[:count]], tensors[count:]
        ctx.shapes = [weight.shape for weight in weights]
        sides, new = _sides(ctx.shapes), weights[0].new_empty
        kept, right, sigmas = new(sum(sides["rows"])), new(sum(sides["columns"])), new(count)
        rows = table(
            Matrix,
            weight=addresses(weights),
            left=addresses(left),
            kept=addresses_in(kept, sides["rows"]),
            right=addresses_in(right, sides["columns"]),
            sigma=addresses_in(sigmas, [1] * count),
            **sides,
        )
        library.loaded().vaebench_spectral_norms(rows.ctypes.data, count, rounds, floor, torch.get_num_threads())
        ctx.save_for_backward(kept, right)
        return sigmas.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_order()
        kept, right = ctx.saved_tensors
        sides, out = _sides(ctx.shapes), [kept.new_empty(shape) for shape in ctx.shapes]
        rows = table(
            Matrix,
            kept=addresses_in(kept, sides["rows"]),
            right=addresses_in(right, sides["columns"]),
            gradient=addresses(out),
            **sides,
        )
        threads = torch.get_num_threads()
        library.loaded().vaebench_spectral_norms_backward(rows.ctypes.data, len(rows), gradient.item(), threads)
        return None, None, *out, *[None] * len(out)


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
