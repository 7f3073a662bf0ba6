"""CPU: residual cells without gradients: norms folded, weights packed, a few images at a time through all layers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.cell_form import CellForm, CellNorm, CellTensors, PackedCell
from kernels.cpu import library
from kernels.cpu.cells.layer import added_map, contiguous, layer_of, new_map, takes_cell
from kernels.cpu.structures import Cell, pointer
from kernels.reference import network as reference

PANEL = 64
"""Floats that a row of biases is longer than its channels: at least the widest panel of `dense.c`."""


@dataclass(frozen=True)
class PackedForC(PackedCell):
    """A cell packed for C.

    Each norm (4, C) as mean, inverse deviation, scale and shift; packed weights and biases; the gate; output channels
    of each layer; and the cell as C takes it, by the shape of its input.
    """

    norms: tuple[Tensor, ...]
    packed: tuple[Tensor, ...]
    start: tuple[Tensor, ...]
    gate: tuple[Tensor, ...]
    channels: tuple[int, ...]
    described: dict[tuple[int, ...], tuple[Cell, tuple[int, int, int, int]]] = field(default_factory=dict)


def describe(cell: PackedForC, shape: tuple[int, int, int, int]) -> tuple[Cell, tuple[int, int, int, int]]:
    """The cell on an input of a shape (B, C, h, w), as C takes it, and the shape of its output."""
    described = Cell(len(cell.channels), len(cell.gate[1]) if cell.gate else 0, cell.form.gain)
    for index, (form, c_out) in enumerate(zip(cell.form.layers, cell.channels, strict=True)):
        layer = described.layers[index] = layer_of(form, shape, c_out)
        shape = (shape[0], c_out, layer.out_height, layer.out_width)
    for name in ("packed", "start", "norms", "gate"):
        tensors = getattr(cell, name)
        getattr(described, name)[: len(tensors)] = [one.data_ptr() for one in tensors]
    for index, norm in enumerate(cell.tensors.norms):
        described.norms[index] = described.norms[index] if norm else None
    return described, shape


def folded(norm: CellNorm) -> Tensor:
    """Mean, inverse standard deviation, scale and shift (4, C) of a norm by its running statistics."""
    channels = len(norm.weight)
    out, affine = torch.empty(4, channels), (norm.weight.data_ptr(), norm.bias.data_ptr())
    constants = norm.epsilon, norm.momentum, norm.repeats
    running = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
    library.loaded().vaebench_norm(None, None, 0, 0, channels, *affine, *constants, *running, out.data_ptr())
    return out


def pack_cell(form: CellForm, tensors: CellTensors) -> PackedCell:
    """The cell ready to run without gradients: norms folded, weights packed; see `kernels.cell_form.PackCell`."""
    if not takes_cell(form, tensors):
        return PackedCell(form, tensors)
    first, made_of, tensors = tensors.convolutions[0].weight, tensors, contiguous(tensors)
    channels = [len(convolution.weight) for convolution in tensors.convolutions]
    inputs = [channels[0] if form.layers[0].groups > 1 else first.shape[1], *channels]
    with torch.no_grad(), torch.inference_mode(False):
        norms = [torch.empty(0) if norm is None else folded(norm) for norm in tensors.norms]
        packed, starts = [], []
        for layer, convolution, c_in, c_out in zip(form.layers, tensors.convolutions, inputs, channels, strict=False):
            sized = layer_of(layer, (1, c_in, 1, 1), c_out)
            packed.append(torch.empty(library.loaded().vaebench_packed_size(sized)))
            starts.append(torch.zeros(c_out + PANEL))
            pointers = (convolution.weight, convolution.bias, packed[-1], starts[-1])
            library.loaded().vaebench_pack(sized, *(pointer(one) for one in pointers))
        gate = tuple(one.detach().clone() for one in tensors.gate)
    return PackedForC(form, made_of, tuple(norms), tuple(packed), tuple(starts), gate, tuple(channels))


def run_packed(cell: PackedCell, x: Tensor, skip: Tensor | None) -> Tensor:
    """The cell, a few images at a time through all layers; see `kernels.cell_form.RunPacked`."""
    if not (isinstance(cell, PackedForC) and library.takes(x)):
        return reference.run_packed(cell, x, skip)
    x = x.contiguous(memory_format=torch.channels_last)
    added = added_map(cell.form, x, skip)
    given = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    if given not in cell.described:
        cell.described[given] = describe(cell, given)
    described, shape = cell.described[given]
    out = new_map(*shape)
    pointers = (x.data_ptr(), pointer(added), out.data_ptr())
    library.loaded().vaebench_cell(ctypes.byref(described), *pointers, torch.get_num_threads())
    return out
