"""CPU: weight normalisation and spectral norms of all convolutions of a model at once, in C (`weights.c`).

The gradient of a spectral norm is the product u v^T of two vectors. Where the weight was made by `weight_norm`, that
product is not written down, to be added to what the convolution gives: `_WeightNorm` has one more result, which stands
for the spectral norms of all its weights, and adds the product row by row on its way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.cpu import library
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import Matrix, Weight
from kernels.cpu.tables import addresses, addresses_in, table
from kernels.reference import network as reference


class Source(NamedTuple):
    """Of a normed weight: what stands for the spectral norms (n,) of all normed with it, and its place among them."""

    norms: Tensor
    place: int


class Vectors(NamedTuple):
    """Left and right vectors of weights, one after the other in memory, and the addresses of each weight's."""

    left: Tensor
    right: Tensor
    left_at: NDArray[np.int64]
    right_at: NDArray[np.int64]

    def placed(self, places: Sequence[tuple[int, int]], count: int) -> Vectors:
        """Those of `count` weights, from (place here, place there); null where there are none."""
        here, there = np.array(places).T
        left_at, right_at = np.zeros((2, count), np.int64)
        left_at[there], right_at[there] = self.left_at[here], self.right_at[here]
        return self._replace(left_at=left_at, right_at=right_at)


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _sides(shapes: Sequence[torch.Size]) -> dict[str, list[int]]:
    """Rows and columns of weights (O, ...) read as (O, rest)."""
    return {"rows": [shape[0] for shape in shapes], "columns": [shape[1:].numel() for shape in shapes]}


class _WeightNorm(torch.autograd.Function):
    """Weights of norm exp(log_norm), from n weights followed by their n log norms, and what stands for spectral norms.

    The latter (n,) has no values, only a gradient; `_SpectralNorms` leaves the `Vectors` that belong to it.
    """

    @staticmethod
    def forward(ctx: Any, floor: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        weights, log_norms = [one.contiguous() for one in tensors[:count]], tensors[count:]
        ctx.floor, ctx.sides, ctx.vectors = floor, _sides([one.shape for one in weights]), None
        out, norms = _like(weights), weights[0].new_empty(sum(ctx.sides["rows"]))
        _weight_norm("weight_norm", ctx, weights, log_norms, norms, out=addresses(out))
        ctx.save_for_backward(norms, *weights, *log_norms)
        return *out, norms.new_zeros(count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        norms, *tensors = ctx.saved_tensors
        *upstream, d_spectral = (gradient.contiguous() for gradient in gradients)
        weights, log_norms = tensors[: len(upstream)], tensors[len(upstream) :]
        out, d_log_norms = _like(weights), _like(log_norms)
        columns: dict[str, Any] = {"gradient": addresses(upstream), "d_log_norm": addresses(d_log_norms)}
        if ctx.vectors is not None:
            columns |= {"left": ctx.vectors.left_at, "right": ctx.vectors.right_at}
            columns |= {"d_spectral": addresses_in(d_spectral, [1] * len(out))}
        _weight_norm("weight_norm_backward", ctx, weights, log_norms, norms, out=addresses(out), **columns)
        return None, *out, *d_log_norms


def _weight_norm(
    name: str, ctx: Any, weights: Sequence[Tensor], log_norms: Sequence[Tensor], norms: Tensor, **columns: Any
) -> None:
    """Call one of the two kernels; `norms` are those of all rows, one weight after the other."""
    columns |= {"weight": addresses(weights), "log_norm": addresses(log_norms)}
    rows = table(Weight, norm=addresses_in(norms, ctx.sides["rows"]), **columns, **ctx.sides)
    getattr(library.loaded(), f"vaebench_{name}")(rows.ctypes.data, len(rows), ctx.floor, torch.get_num_threads())


class _SpectralNorms(torch.autograd.Function):
    """Sum of u^T W v over n weights, by a power iteration that moves their n left vectors.

    A weight with a source takes its gradient there; the sources' norms come last.
    """

    @staticmethod
    def forward(ctx: Any, rounds: int, floor: float, sources: Sequence[Source | None], *tensors: Tensor) -> Tensor:
        count = len(sources)
        weights, left = [one.contiguous() for one in tensors[:count]], tensors[count : 2 * count]
        shapes, new = [weight.shape for weight in weights], weights[0].new_empty
        sides = _sides(shapes)
        kept, right, sigmas = new(sum(sides["rows"])), new(sum(sides["columns"])), new(count)
        vectors = Vectors(kept, right, addresses_in(kept, sides["rows"]), addresses_in(right, sides["columns"]))
        places = {"kept": vectors.left_at, "right": vectors.right_at, "sigma": addresses_in(sigmas, [1] * count)}
        rows = table(Matrix, weight=addresses(weights), left=addresses(left), **places, **sides)
        library.loaded().vaebench_spectral_norms(rows.ctypes.data, count, rounds, floor, torch.get_num_threads())
        for norms in tensors[2 * count :]:
            among = [(here, one.place) for here, one in enumerate(sources) if one and one.norms is norms]
            made_by: Any = norms.grad_fn
            made_by.vectors = vectors.placed(among, len(norms))
        ctx.vectors, ctx.among = vectors, [len(norms) for norms in tensors[2 * count :]]
        ctx.shapes = [shape if one is None else None for shape, one in zip(shapes, sources, strict=True)]
        ctx.rows = rows[[one is None for one in sources]]
        return sigmas.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_order()
        out = [None if shape is None else gradient.new_empty(shape) for shape in ctx.shapes]
        ctx.rows["gradient"] = addresses(one for one in out if one is not None)
        library.loaded().vaebench_spectral_norms_backward(
            ctx.rows.ctypes.data, len(ctx.rows), gradient.item(), torch.get_num_threads()
        )
        return None, None, None, *out, *[None] * len(out), *(gradient.expand(count) for count in ctx.among)


def weight_norm(weights: Sequence[Tensor], log_norms: Sequence[Tensor], floor: float) -> tuple[Tensor, ...]:
    """The weights (O, ...), each output's scaled to norm exp(log_norm); see `kernels.ops.WeightNorm`."""
    if not weights or not library.takes(*weights, *log_norms, autocast=True):
        return reference.weight_norm(weights, log_norms, floor)
    *out, norms = _WeightNorm.apply(floor, *weights, *log_norms)  # pyright: ignore[reportGeneralTypeIssues]
    if norms.requires_grad:
        for place, one in enumerate(out):
            vars(one)["source"] = Source(norms, place)
    return tuple(out)


def spectral_norms(weights: Sequence[Tensor], left: Sequence[Tensor], rounds: int, floor: float) -> Tensor:
    """Sum of the top singular values of weights read as (O, rest); see `kernels.ops.SpectralNorms`."""
    if not weights or not library.takes(*weights, *left, autocast=True):
        return reference.spectral_norms(weights, left, rounds, floor)
    sources = [vars(one).pop("source", None) for one in weights]  # each serves one call
    norms = {id(one.norms): one.norms for one in sources if one}.values()
    return _SpectralNorms.apply(rounds, floor, sources, *weights, *left, *norms)  # pyright: ignore[reportReturnType]
