"""What an operation is called in a table: its kind and shape; and the products in it."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.speed.operations.sides import BACKWARD
from benchmarks.speed.operations.traced import ADAMAX, Operation, Slot, slots_of
from kernels.cell_form import CellForm, CellTensors, LayerForm, PackedCell

KINDS = {
    "gaussian_sample_kl": "Gaussian draw and KL",
    "gaussian_sample": "Gaussian draw",
    "logistic_mixture_log_prob": "logistic mixture",
    "logistic_mixture_mean": "mean of the mixture",
    "norm_swish": "norm and activation",
    "bernoulli_log_prob": "Bernoulli",
    "image_linear": "first linear layer",
    "convolution": "activation and convolution",
    "weight_norm": "weight norm",
    "spectral_norms": "spectral norms",
    ADAMAX: "Adamax step",
}
SINGLE, CONVOLUTIONS = "norm, activation and convolution", "cell of convolutions"
DEPTHWISE, DENSE = "normed cell, depthwise", "normed cell, dense"


def cell_of(operation: Operation) -> tuple[CellForm, CellTensors] | None:
    """Form and slots of a cell; None of any other operation."""
    packed = operation.argument("cell")
    if isinstance(packed, PackedCell):
        return packed.form, packed.tensors
    form, tensors = operation.argument("form"), operation.argument("tensors")
    return (form, tensors) if isinstance(form, CellForm) and isinstance(tensors, CellTensors) else None


def kind_of(operation: Operation) -> str:
    """The kind of operation."""
    cell = cell_of(operation)
    if cell is None:
        return KINDS[operation.name]
    form, tensors = cell
    if not any(tensors.norms):
        return CONVOLUTIONS
    if any(layer.groups > 1 for layer in form.layers):
        return DEPTHWISE
    return SINGLE if len(form.layers) == 1 else DENSE


def layers_of(operation: Operation) -> list[tuple[LayerForm, Any]]:
    """Layers with the slots of their weights; none of what is neither a cell nor a convolution."""
    cell = cell_of(operation)
    if cell is not None:
        return [(form, one.weight) for form, one in zip(cell[0].layers, cell[1].convolutions, strict=True)]
    form = operation.argument("form")
    return [(form, operation.argument("weight"))] if isinstance(form, LayerForm) else []


def shape_of(operation: Operation) -> str:
    """What the operation works on, and its layers: "16x32x8x8: 1x1 192, 5x5 depthwise 192, 1x1 32"."""
    slots, layers = slots_of(operation), layers_of(operation)
    if operation.name in ("weight_norm", "spectral_norms", ADAMAX):
        return f"{sum(math.prod(one.shape) for one in slots):,} values in {len(slots)} tensors"
    x = operation.argument("x")
    shape = "x".join(map(str, (x if layers else slots[0]).shape))
    return f"{shape}: {', '.join(_layer(form, weight) for form, weight in layers)}" if layers else shape


def _layer(form: LayerForm, weight: Slot) -> str:
    words = [f"{form.kernel}x{form.kernel}", "depthwise" if form.groups > 1 else "", str(weight.shape[0])]
    words += ["every second pixel" if form.stride == 2 else "", "twice the pixels" if form.repeat else ""]
    return " ".join(filter(None, words))


def flops_of(operation: Operation, direction: str) -> float:
    """Multiplications and additions of the products in one direction; those of norms and activations are left out."""
    x, found = operation.argument("x"), 0.0
    if operation.name == "image_linear":
        found = 2.0 * x.shape[0] * math.prod(operation.argument("rows").shape)
    layers = layers_of(operation)
    height, width = x.shape[2:] if layers else (0, 0)
    for form, weight in layers:
        repeats = 2 if form.repeat else 1
        height, width = (-(-side * repeats // form.stride) for side in (height, width))
        found += 2.0 * x.shape[0] * height * width * math.prod(weight.shape)
    return found * (1 + (x is not None and x.differentiable)) if direction == BACKWARD else found
