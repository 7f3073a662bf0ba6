"""CPU: cells of activations and convolutions alone, one call of C in either direction.

Only the cell's input and the maps between its layers are kept, or the input alone with `recompute`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.cell_form import CellForm, CellTensors, LayerForm
from kernels.cpu import library
from kernels.cpu.cells.layer import layer_of, new_map, takes_layer
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import MOST_LAYERS, Convolutions, pointer
from kernels.reference import network as reference


@dataclass(frozen=True)
class Plan:
    """A cell on maps of given shapes: as C takes it but for addresses, its output's shape, and how many floats to keep.

    `between` floats lie in the maps between its layers, `largest` in the largest of them.
    """

    described: Convolutions
    out: tuple[int, int, int, int]
    between: int
    largest: int

    def on(self, flat: Sequence[Tensor | None], gradients: Sequence[Tensor | None] = ()) -> Convolutions:
        """The cell with weight and bias of each layer, one after the other, and with where their gradients go."""
        cell = Convolutions.from_buffer_copy(self.described)
        for index in range(cell.count):
            cell.weights[index], cell.biases[index] = map(pointer, flat[2 * index : 2 * index + 2])
        for index in range(len(gradients) // 2):
            cell.d_weights[index], cell.d_biases[index] = map(pointer, gradients[2 * index : 2 * index + 2])
        return cell


@functools.lru_cache(maxsize=1024)
def plan_of(form: CellForm, channels: tuple[int, ...], shape: tuple[int, int, int, int]) -> Plan:
    """The cell whose layers have so many output channels, on maps of shape (B, C, h, w)."""
    cell, between = Convolutions(len(form.layers)), []
    for index, (layer, c_out) in enumerate(zip(form.layers, channels, strict=True)):
        described = cell.layers[index] = layer_of(layer, shape, c_out)
        shape = (shape[0], c_out, described.out_height, described.out_width)
        between.append(shape[0] * shape[1] * shape[2] * shape[3])
    return Plan(cell, shape, sum(between[:-1]), max(between[:-1], default=0))


class FusedCellOfConvolutions(torch.autograd.Function):
    """[skip +] layers(x); a null skip stands for x where the form is residual."""

    @staticmethod
    def forward(ctx: Any, form: CellForm, x: Tensor, skip: Tensor | None, *flat: Tensor | None) -> Tensor:
        """Run, and keep the input and the maps between layers; `flat` are weight and bias of each."""
        plan = plan_of(form, tuple(one.shape[0] for one in flat[::2] if one is not None), tuple(x.shape))  # pyright: ignore[reportArgumentType]
        between, out = torch.empty(plan.between), new_map(*plan.out)
        added = x if skip is None and form.residual else skip
        library.loaded().vaebench_convolutions(
            ctypes.byref(plan.on(flat)),
            *(pointer(one) for one in (x, added, between, out)),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, None if form.recompute else between, *flat)
        ctx.plan, ctx.skip_is_input, ctx.with_skip = plan, skip is None and form.residual, skip is not None
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, skip, and all weights and biases."""
        refuse_second_order()
        x, between, *flat = ctx.saved_tensors
        plan, threads, c = ctx.plan, torch.get_num_threads(), library.loaded()
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradients = [None if one is None else torch.empty_like(one) for one in flat]
        cell = ctypes.byref(plan.on(flat, gradients))
        if between is None:
            between = torch.empty(plan.between)
            c.vaebench_convolutions(cell, x.data_ptr(), None, between.data_ptr(), None, threads)
        room, d_x = torch.empty(2 * plan.largest), torch.empty_like(x) if ctx.needs_input_grad[1] else None
        added = gradient if ctx.skip_is_input else None
        c.vaebench_convolutions_backward(
            cell, *(pointer(one) for one in (x, between, gradient, added, room, d_x)), threads
        )
        return None, d_x, gradient if ctx.with_skip else None, *gradients


class FusedConvolution(FusedCellOfConvolutions):
    """A single layer, under a name of its own."""


def only_convolves(form: CellForm, tensors: CellTensors, skip: Tensor | None) -> bool:
    """Whether a cell is of convolutions alone, and what it is added to, if anything, a layer itself can add."""
    if form.gain != 1 or tensors.gate or len(form.layers) > MOST_LAYERS or any(tensors.norms):
        return False
    first, last = form.layers[0], form.layers[-1]
    adds = (skip is None and not form.residual) or last.groups == 1
    gives_back = skip is not None or not form.residual or (first.groups == 1 and not first.repeat)
    return adds and gives_back


@functools.cache
def alone(layer: LayerForm) -> CellForm:
    """The cell of one layer, added to nothing."""
    return CellForm((layer,), residual=False)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
    """Activation and convolution, channels-last; see `kernels.cell_form.ActivatedConvolution`."""
    if not (library.takes(x, weight) and takes_layer(form, weight)):
        return reference.convolution(x, weight, bias, form)
    x, weight = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
    return FusedConvolution.apply(alone(form), x, None, weight, bias)  # pyright: ignore[reportReturnType]
