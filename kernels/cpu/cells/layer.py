"""CPU: layers of a cell as the C kernels take them, which of them they take, and maps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels.cell_form import CellForm, CellTensors, Convolution, LayerForm
from kernels.cpu import library
from kernels.cpu.structures import MOST_LAYERS, Layer

ACTIVATIONS: dict[str, int] = {"none": 0, "swish": 1, "elu": 2, "gelu": 3}
LARGEST_KERNEL = 13


@functools.cache
def layer_of(form: LayerForm, shape: tuple[int, int, int, int], c_out: int) -> Layer:
    """The layer on maps of shape (B, C, h, w), as the C kernels take it."""
    batch, channels, height, width = shape
    repeat = 2 if form.repeat else 1
    out = (-(-height * repeat // form.stride), -(-width * repeat // form.stride))
    numbers = (form.kernel, form.stride, form.dilation, repeat, form.groups > 1, ACTIVATIONS[form.activation])
    return Layer(batch, height, width, channels, c_out, *out, *numbers)


def new_map(batch: int, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised channels-last map."""
    return torch.empty(batch, channels, height, width, memory_format=torch.channels_last)


def added_map(form: CellForm, x: Tensor, skip: Tensor | None) -> Tensor | None:
    """What is added to the branch, channels-last; None of a form that is not residual."""
    if skip is None:
        return x if form.residual else None
    return skip.contiguous(memory_format=torch.channels_last)


def takes_layer(layer: LayerForm, weight: Tensor) -> bool:
    """Whether there is C for a layer: an odd kernel up to 13x13, without groups or depthwise and not dilated."""
    if layer.groups > 1 and (layer.dilation > 1 or len(weight) != layer.groups or weight.shape[1] != 1):
        return False
    return layer.kernel % 2 == 1 and layer.kernel <= LARGEST_KERNEL


def takes_cell(form: CellForm, tensors: CellTensors) -> bool:
    """Whether there is C for all layers of a cell, and it takes their weights."""
    weights = [one.weight for one in tensors.convolutions]
    return len(weights) <= MOST_LAYERS and library.takes(*weights) and all(map(takes_layer, form.layers, weights))


def contiguous(tensors: CellTensors) -> CellTensors:
    """The tensors with weights as the C kernels read them."""
    if all(one.weight.is_contiguous() for one in tensors.convolutions):
        return tensors
    convolutions = (Convolution(one.weight.contiguous(), one.bias) for one in tensors.convolutions)
    return CellTensors(tensors.norms, tuple(convolutions), tensors.gate)
