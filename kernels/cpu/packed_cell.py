"""CPU: residual cells without gradients: norms folded, weights packed, a few images at a time through all layers."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from kernels.cell_form import CellForm, CellTensors, PreparedCell
from kernels.cpu import library
from kernels.cpu.cell import CLayer, layer_of, new_map, normalise, runs_layers
from kernels.cpu.library import pointer

MOST_LAYERS = 8
PANEL = 64
"""Floats that a row of biases is longer than its channels: at least the widest panel of `dense.c`."""


class _Cell(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("gain", ctypes.c_float),
        ("layers", CLayer * MOST_LAYERS),
        ("packed", ctypes.c_void_p * MOST_LAYERS),
        ("start", ctypes.c_void_p * MOST_LAYERS),
        ("norms", ctypes.c_void_p * (MOST_LAYERS + 1)),
        ("gate", ctypes.c_void_p * 4),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    lib, address = library.loaded(), ctypes.c_void_p
    lib.vaebench_pack.argtypes = (CLayer, *(address,) * 4)
    lib.vaebench_packed_size.argtypes, lib.vaebench_packed_size.restype = (CLayer,), ctypes.c_int64
    lib.vaebench_cell.argtypes = (ctypes.POINTER(_Cell), *(address,) * 3, ctypes.c_int32)
    return lib


def prepare_cell(form: CellForm, tensors: CellTensors) -> PreparedCell | None:
    """The cell ready to run without gradients: norms folded, weights packed; see `kernels.cell_form.PrepareCell`."""
    first = tensors.convolutions[0].weight
    if len(form.layers) > MOST_LAYERS or not runs_layers(first, *form.layers):
        return None
    channels = [len(convolution.weight) for convolution in tensors.convolutions]
    inputs = [channels[0] if form.layers[0].depthwise else first.shape[1], *channels]
    with torch.no_grad(), torch.inference_mode(False):
        norms = [
            normalise(*pair, update=False) for pair in zip(tensors.norms, [None] * len(inputs), inputs, strict=True)
        ]
        packed, starts = [], []
        for layer, convolution, c_in, c_out in zip(form.layers, tensors.convolutions, inputs, channels, strict=False):
            sized = layer_of(layer, (1, c_in, 1, 1), c_out)
            packed.append(torch.empty(_library().vaebench_packed_size(sized)))
            starts.append(torch.zeros(c_out + PANEL))
            pointers = (convolution.weight, convolution.bias, packed[-1], starts[-1])
            _library().vaebench_pack(sized, *(pointer(one) for one in pointers))
        gate = tuple(one.detach().clone() for one in tensors.gate)
    return PreparedCell(form, tuple(norms), tuple(packed), tuple(starts), gate, tuple(channels))


def run_prepared(cell: PreparedCell, x: Tensor, skip: Tensor | None) -> Tensor | None:
    """The cell, a few images at a time through all layers; see `kernels.cell_form.RunPrepared`."""
    if not runs_layers(x):
        return None
    x = x.contiguous(memory_format=torch.channels_last)
    skip = x if skip is None else skip.contiguous(memory_format=torch.channels_last)
    count, hidden = len(cell.channels), len(cell.gate[1]) if cell.gate else 0
    described = _Cell(count, hidden, cell.form.gain)
    shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    for index, (form, c_out) in enumerate(zip(cell.form.layers, cell.channels, strict=True)):
        layer = described.layers[index] = layer_of(form, shape, c_out)
        shape = (shape[0], c_out, layer.out_height, layer.out_width)
    for name in ("packed", "start", "norms", "gate"):
        tensors = getattr(cell, name)
        getattr(described, name)[: len(tensors)] = [one.data_ptr() for one in tensors]
    out = new_map(*shape)
    pointers = (x.data_ptr(), skip.data_ptr(), out.data_ptr())
    _library().vaebench_cell(ctypes.byref(described), *pointers, torch.get_num_threads())
    return out
