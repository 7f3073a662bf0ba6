"""CPU: a whole residual cell as one operation with gradients written by hand, one call of C in either direction.

Autograd over single layers keeps every activation and every normalised map, and walks through memory once for each.
Here a layer ([batch norm,] activation, [repeated pixels,] convolution) reads its input once and writes its output once
(`trainable_cell.c`); only the cell's input and its layers' outputs are kept, or the input alone with `recompute`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.cell_form import CellForm, CellTensors, Convolution, LayerForm
from kernels.cpu import library
from kernels.cpu.cells.layer import added_map, contiguous, layer_of, new_map, takes_cell, takes_layer
from kernels.cpu.gradients import refuse_second_order
from kernels.cpu.structures import TrainableCell, pointer
from kernels.reference import network as reference

Shape = tuple[int, int, int, int]
Flat = Sequence[Tensor | None]


@dataclass(frozen=True)
class Plan:
    """A cell on maps of given shapes: as C takes it but for addresses, and its output's shape.

    A pass keeps `kept` floats and needs `room` on the way back; a norm sees at least `values` values of a channel.
    """

    described: TrainableCell
    out: Shape
    kept: int
    room: int
    values: int | None

    def on(self, tensors: CellTensors, flat: Flat, gradients: Flat = ()) -> TrainableCell:
        """The cell with its tensors, `flat` in the order of `CellTensors.flat`, and where their gradients go."""
        cell = TrainableCell.from_buffer_copy(self.described)
        cell.tensors[: len(flat)] = [pointer(one) for one in flat]
        cell.gradients[: len(gradients)] = [pointer(one) for one in gradients]
        for index, norm in enumerate(tensors.norms):
            if norm is not None:
                cell.constants[3 * index : 3 * index + 3] = norm.epsilon, norm.momentum, norm.repeats
                cell.running[2 * index : 2 * index + 2] = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
        return cell


@functools.lru_cache(maxsize=1024)
def plan_of(form: CellForm, normed: tuple[bool, ...], channels: tuple[int, ...], hidden: int, shape: Shape) -> Plan:
    """The cell with norms where `normed` says so and so many output channels of its layers, on maps (B, C, h, w)."""
    cell = TrainableCell(len(form.layers), hidden, form.gain)
    cell.normed[: len(normed)] = normed
    shapes = [shape]
    for index, (layer, c_out) in enumerate(zip(form.layers, channels, strict=True)):
        described = cell.layers[index] = layer_of(layer, shape, c_out)
        shape = (shape[0], c_out, described.out_height, described.out_width)
        shapes.append(shape)
    counts = [batch * height * width for (batch, _, height, width), one in zip(shapes, normed, strict=True) if one]
    c = library.loaded()
    kept, room = c.vaebench_kept_floats(cell), 2 * c.vaebench_largest_between(cell)
    return Plan(cell, shape, kept, room, min(counts, default=None))


def plan_for(form: CellForm, tensors: CellTensors, x: Tensor) -> Plan:
    """The plan of a cell of these tensors on maps x."""
    channels = tuple(len(one.weight) for one in tensors.convolutions)
    normed, hidden = tuple(norm is not None for norm in tensors.norms), len(tensors.gate[1]) if tensors.gate else 0
    return plan_of(form, normed, channels, hidden, (x.shape[0], x.shape[1], x.shape[2], x.shape[3]))


def run_cell(
    form: CellForm, tensors: CellTensors, x: Tensor, skip: Tensor | None, flat: Flat, training: bool
) -> tuple[Plan, Tensor, Tensor]:
    """The plan, what the way back needs, and the output; training moves the running statistics.

    Raises:
        ValueError: a norm has one value a channel in training.
    """
    plan = plan_for(form, tensors, x)
    if training and plan.values == 1:
        raise ValueError("batch norm: expected more than one value per channel in training, got 1; use a larger batch")
    kept, out, added = torch.empty(plan.kept), new_map(*plan.out), added_map(form, x, skip)
    cell = ctypes.byref(plan.on(tensors, flat))
    pointers = (pointer(one) for one in (x, added, kept, out))
    library.loaded().vaebench_trainable_cell(cell, *pointers, training, training, torch.get_num_threads())
    if training:
        moved = [one for norm in tensors.norms if norm for one in (norm.running_mean, norm.running_var)]
        torch.autograd.graph.increment_version(moved)
    return plan, kept, out


class FusedCell(torch.autograd.Function):
    """[skip +] gain * gate * branch(x) in training; a null skip stands for x where the form is residual."""

    @staticmethod
    def forward(
        ctx: Any, form: CellForm, tensors: CellTensors, x: Tensor, skip: Tensor | None, *flat: Tensor | None
    ) -> Tensor:
        """Run, and keep the input and the layers' outputs; `flat` are the cell's tensors in their order."""
        ctx.plan, kept, out = run_cell(form, tensors, x, skip, flat, training=True)
        ctx.save_for_backward(x, None if form.recompute else kept, *flat)
        ctx.tensors, ctx.skip_is_input, ctx.with_skip = tensors, skip is None and form.residual, skip is not None
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, skip and all parameters."""
        refuse_second_order()
        x, kept, *flat = ctx.saved_tensors
        plan, threads, c = ctx.plan, torch.get_num_threads(), library.loaded()
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradients = [None if one is None else torch.empty_like(one) for one in flat]
        cell = ctypes.byref(plan.on(ctx.tensors, flat, gradients))
        if kept is None:
            kept = torch.empty(plan.kept)
            c.vaebench_trainable_cell(cell, x.data_ptr(), None, kept.data_ptr(), None, True, False, threads)
        wanted = ctx.needs_input_grad[2] or ctx.tensors.norms[0] is not None
        room, d_x = torch.empty(plan.room), torch.empty_like(x) if wanted else None
        added = gradient if ctx.skip_is_input else None
        pointers = (pointer(one) for one in (x, kept, gradient, added, room, d_x))
        c.vaebench_trainable_cell_backward(cell, *pointers, threads)
        return None, None, d_x, gradient if ctx.with_skip else None, *gradients


class FusedConvolution(FusedCell):
    """A single layer, under a name of its own."""


def residual_cell(x: Tensor, skip: Tensor | None, form: CellForm, tensors: CellTensors, *, training: bool) -> Tensor:
    """The cell; see `kernels.cell_form.ResidualCell`. Gradients in evaluation take the reference."""
    if not (library.takes(x) and takes_cell(form, tensors)) or (torch.is_grad_enabled() and not training):
        return reference.residual_cell(x, skip, form, tensors, training=training)
    x, tensors = x.contiguous(memory_format=torch.channels_last), contiguous(tensors)
    skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled():
        return FusedCell.apply(form, tensors, x, skip, *tensors.flat())  # pyright: ignore[reportReturnType]
    return run_cell(form, tensors, x, skip, tensors.flat(), training)[2]


@functools.cache
def alone(layer: LayerForm) -> CellForm:
    """The cell of one layer, added to nothing."""
    return CellForm((layer,), residual=False)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, form: LayerForm) -> Tensor:
    """Activation and convolution, channels-last; see `kernels.cell_form.ActivatedConvolution`."""
    if not (library.takes(x, weight) and takes_layer(form, weight)):
        return reference.convolution(x, weight, bias, form)
    x = x.contiguous(memory_format=torch.channels_last)
    tensors = CellTensors((None, None), (Convolution(weight.contiguous(), bias),))
    return FusedConvolution.apply(alone(form), tensors, x, None, *tensors.flat())  # pyright: ignore[reportReturnType]
